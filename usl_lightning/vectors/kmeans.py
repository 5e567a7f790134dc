"""k-means on all points, as the papers run it."""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import progress
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.vectors.distances import check_features, exact_arithmetic
from usl_lightning.vectors.kmeans_bounds import BLOCK_BYTES, GroupBounds
from usl_lightning.vectors.memory import check_memory, once

log = logging.getLogger(__name__)

BOUNDS_FROM = 1_000
"""So many clusters are worth bounds: over 40 iterations on 150,000 points they take the same time with 1,000
clusters, two thirds of it with 2,911, and a third of it at the end."""

GROUP_SIZE = 64
"""Centroids in a group of those bounds, on average."""

BLOCK_ROWS = 64
"""Rows at once at least: with fewer, the products themselves get slower."""


SAMPLE = 10_000
"""Starts are compared on a sample of more points than this, 20 for each cluster if that is more; the best one goes on
with all points."""


def kmeans(
    features: Tensor, k: int, *, seed: int = 0, iterations: int = 200, restarts: int = 1
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (Lloyd, 1982) from k random points, on all points.

    Args:
        features: [n, d], any float dtype, CPU or CUDA.
        k: clusters, from 1 to n.
        seed: decides the k starting points.
        iterations: at most this many, at least 1; it stops when no label changes. The log says which.
        restarts: starts, at least 1, of which the one of the least inertia (sum of squared distances) counts; the
            first of them is that of `restarts=1`. With one start, chance decides much.

    Returns:
        Labels, int64 [n], of the nearest centroid (ties: the lower cluster, as far as rounding
        lets a tie be seen), and centroids [k, d], float32
        (float64 for float64 features). A cluster that loses all its points keeps its centroid and may stay
        empty, as in the published USL code: nothing is split or moved.

    Raises:
        UslError: k or iterations out of range, or features not finite.

    Products are in the features' precision, sums in float64. The same on every run on one machine. Memory
    beyond the input: the features once more, and about 0.2 GB; from 1,000 clusters on (float32 on the CPU) also
    100 + k/16 bytes for each point, with which `GroupBounds` spares most of the products.
    """
    x = check_features(features)
    if not 1 <= k <= len(x):
        raise UslError(f"k={k} clusters: expected a number from 1 to {len(x)}, the points there are")
    if iterations < 1 or restarts < 1:
        raise UslError(f"iterations={iterations}, restarts={restarts} of k-means: expected at least 1")
    if x.device.type == "cpu":
        bounds = len(x) * (100 + 4 * k // GROUP_SIZE) if k >= BOUNDS_FROM else 32 * len(x)
        check_memory(x.nbytes + bounds + 200_000_000, f"k-means of {len(x)} points")
    with exact_arithmetic(x.device):
        mean = x.mean(0)
        x = x - mean  # distances do not change, rounding errors shrink
        with progress(f"k-means of {k} clusters", iterations, "iteration") as bar:
            start = _best_start(x, k, seed, iterations, restarts)
            labels, centroids, converged = _lloyd(x, start, seed, iterations, bar.update)
        if converged:
            log.info("k-means: converged after %d iterations", converged)
        else:
            log.info("k-means: stopped after %d iterations, before convergence", iterations)
        return labels, (centroids + mean).to(x.dtype)


def shared_kmeans(
    features: Tensor, k: int, *, seed: int = 0, iterations: int = 200, restarts: int = 1
) -> tuple[Tensor, Tensor]:
    """`kmeans`, which a comparison computes once for all selectors that start from it."""
    how = (k, seed, iterations, restarts)
    return once(
        lambda: kmeans(features, k, seed=seed, iterations=iterations, restarts=restarts), features, "k-means", *how
    )


def _random_points(x: Tensor, k: int, seed: int, *which: int) -> Tensor:
    return x[permutation(len(x), seed, "k-means", *which)[:k].to(x.device)].double()


def _best_start(x: Tensor, k: int, seed: int, iterations: int, restarts: int) -> Tensor:
    """Centroids [k, d], float64, to start from: of several starts those that end with the least inertia.

    Where all points are looked at they are the end of that start, from which one more iteration changes nothing.
    """
    if restarts == 1:
        return _random_points(x, k, seed)
    size = max(SAMPLE, 20 * k)
    some = x if len(x) <= size else x[permutation(len(x), seed, "k-means sample")[:size].to(x.device)]
    best, least = _random_points(x, k, seed), float("inf")
    for number in range(restarts):
        start = _random_points(some, k, seed, *([number] if number else []))
        labels, centroids, _ = _lloyd(some, start, seed, iterations)
        inertia = _inertia(some, labels, k)
        if inertia < least:
            best, least = centroids, inertia
    log.info("k-means: the best of %d starts on %d points", restarts, len(some))
    return best


def _inertia(x: Tensor, labels: Tensor, k: int) -> float:
    """Sum of squared distances of the rows of x [n, d] to the means of their clusters."""
    counts = torch.bincount(labels, minlength=k).clamp(min=1)
    explained = (cluster_sums(x, labels, k).square().sum(1) / counts).sum()
    return float(x.double().square().sum() - explained)


def _lloyd(
    x: Tensor, centroids: Tensor, seed: int, iterations: int, tell: Callable[[], object] = lambda: None
) -> tuple[Tensor, Tensor, int]:
    """Labels, centroids and the number of iterations after which no label changed; 0 if some still did.

    Each iteration is told; most runs converge before the last.

    Args:
        x: [n, d].
        centroids: [k, d], float64, to start from.
        seed: of the groups of centroids, where there are many.
        iterations: at most.
        tell: called after each.
    """
    k = len(centroids)
    assign = _assignment(x, centroids, seed)
    labels = assign(centroids)
    sums = cluster_sums(x, labels, k)
    for iteration in range(1, iterations + 1):
        counts = torch.bincount(labels, minlength=k)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        before, labels = labels, assign(centroids)
        moved = torch.nonzero(before != labels)[:, 0]
        if len(moved) == 0:
            return labels, centroids, iteration
        sums += cluster_sums(x[moved], labels[moved], k) - cluster_sums(x[moved], before[moved], k)
        tell()
    return labels, centroids, 0


def _assignment(x: Tensor, centroids: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """How the nearest of some centroids are found: many of them by bounds, which need groups of near ones."""
    if len(centroids) < BOUNDS_FROM or x.device.type != "cpu" or x.dtype != torch.float32:
        return partial(nearest_centroid, x)
    some = centroids.float()
    groups = _lloyd(some, _random_points(some, max(1, len(some) // GROUP_SIZE), seed), seed, 10)[0]
    return GroupBounds(x, torch.unique(groups, return_inverse=True)[1]).assign


def nearest_centroid(x: Tensor, centroids: Tensor) -> Tensor:
    """int64 [n]: for each row of x [n, d] the nearest of the centroids [k, d]; ties to the lower."""
    centroids = centroids.to(x.dtype)
    half_norms = centroids.square().sum(1) / 2
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    if x.device.type == "cpu":
        _nearest_in_cache(x, centroids, half_norms, labels)
    else:
        for rows in chunks(len(x), 2 * x.element_size() * len(centroids), x.device):
            labels[rows] = torch.addmm(half_norms, x[rows], centroids.T, alpha=-1).argmin(1)
    return labels


def _nearest_in_cache(x: Tensor, centroids: Tensor, half_norms: Tensor, labels: Tensor) -> None:
    """Fill in the labels [n], a few rows at a time: the products are still in the cache when they are compared.

    NumPy's argmin is vectorised: a fortieth of the products' time, where torch's takes a third of it.
    """
    rows = BLOCK_BYTES * torch.get_num_threads() // (x.element_size() * len(centroids))
    block = torch.empty(min(len(x), max(rows, BLOCK_ROWS)), len(centroids), dtype=x.dtype)
    for start in range(0, len(x), len(block)):
        part = x[start : start + len(block)]
        scores = torch.addmm(half_norms, part, centroids.T, alpha=-1, out=block[: len(part)])
        np.argmin(scores.numpy(), 1, out=labels[start : start + len(part)].numpy())


def cluster_sums(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """The sum of each cluster's points, float64 [k, d], of points [n, d] in clusters int64 [n]."""
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    for rows in chunks(len(x), 16 * (k + x.shape[1]), x.device):
        _add_rows(sums, labels[rows], x[rows].double())
    return sums


def _add_rows(sums: Tensor, labels: Tensor, rows: Tensor) -> None:
    """Add each row to its cluster's sum in a fixed order (atomic additions on a GPU have none)."""
    if sums.device.type == "cpu":
        sums.index_add_(0, labels, rows)
    else:
        one_hot = torch.nn.functional.one_hot(labels, len(sums)).to(rows.dtype)
        sums.addmm_(one_hot.T, rows)
