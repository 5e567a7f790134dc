"""k-means on all points, as the papers run it; of features that are spread over processes too."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import progress
from usl_lightning.compute.device import chunks
from usl_lightning.compute.distributed import Share
from usl_lightning.data.keys import permutation
from usl_lightning.vectors.assignment import About, Products
from usl_lightning.vectors.distances import check_features, exact_arithmetic
from usl_lightning.vectors.kmeans_bounds import GroupBounds
from usl_lightning.vectors.memory import check_memory, once

log = logging.getLogger(__name__)

GROUP_SIZE, MOST_GROUPS = 64, 64
"""Centroids in a group of bounds, on average, and groups: of more than 4,096 centroids they are larger."""

SAMPLE = 10_000
"""Points of a sample that is clustered first, or 20 for each cluster if that is more; of at least four times as many
points, or to compare starts. Its clusters are near those of all, so few iterations on all are left."""

GROWTH = 4
"""Each sample is so many times the one before; the last is at most that part of all points."""

ROUND = 20
"""Iterations on such a sample after which the worse half of the starts is given up, and again after as many more."""

FINALISTS = 5
"""So many starts or fewer are followed to their ends."""

MOMENTUM, PLAIN = 0.8, 2
"""Of so many points that two samples are clustered first: which part of its last move a centroid makes again beside
that to the mean of its points (Polyak, 1964), and how many iterations at the end are without."""

SHARE, FEWEST = 8, 10
"""Which part of the iterations is taken then on each sample and on all, and how many at least, if there are."""

BOUNDS_FROM = 256
"""So many clusters are worth bounds, but with momentum: centroids move too far then, and bounds take 1.6 times as long
as all products. With fewer, the products take no longer than looking at the points."""


class Points:
    """The points of this process, about their mean, and sums over those of all processes, exact in any order.

    Numbers are added as multiples of a power of two, so small that 62 bits just hold the largest sum there can be: of
    a million unit rows 2⁻⁴¹. So sums do not depend on the order, on the device or on how many processes share the
    points.

    Args:
        x: [n, d], those of this process.
        share: of all points.

    Attributes:
        x: [n, d], seen less the mean of all points: distances do not change, rounding errors shrink.
        mean: [d], as rounded to the points' precision.
        count: of all points.
    """

    def __init__(self, x: Tensor, share: Share) -> None:
        self._share, self.count = share, share.count
        self._about(x, torch.zeros_like(x[0]))
        together = self.sums(torch.zeros(len(x), dtype=torch.int64, device=x.device), 1)
        mean = self.means(together, torch.zeros_like(together[:, :-1], dtype=torch.float64))[0]
        self.mean = mean.to(x.dtype).double()
        self._about(x, mean.to(x.dtype))

    def _about(self, rows: Tensor, point: Tensor) -> None:
        self._rows, self._point, self.x = rows, point, About(rows, point)
        parts = chunks(len(self.x), 16 * self.x.shape[1], self.x.device)
        most = float(self._share.largest(torch.stack([self.x[part].abs().amax().double() for part in parts]).amax()))
        self._bits = 61 - math.ceil(math.log2(self.count)) - math.frexp(most)[1]

    def sums(self, labels: Tensor, k: int, less: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """int64 [k, d + 1]: the sum of each cluster's points, in units of 2^-bits, and in the last column their number.

        Args:
            labels: int64, of this process's points, or of those in `rows`.
            k: clusters.
            less: the labels of clusters that the same points are taken from.
            rows: which of the points; None: all.
        """
        x = self.x
        sums = torch.zeros(k, x.shape[1] + 1, dtype=torch.int64, device=x.device)
        for part in chunks(len(labels), 32 * x.shape[1], x.device):
            points = x[part] if rows is None else x[rows[part]]
            numbers = torch.ones(len(points), x.shape[1] + 1, dtype=torch.int64, device=x.device)
            numbers[:, :-1] = points.double().mul_(2.0**self._bits).round_()
            sums.index_add_(0, labels[part], numbers)
            if less is not None:
                sums.index_add_(0, less[part], numbers, alpha=-1)
        return self._share.total(sums)

    def means(self, sums: Tensor, empty: Tensor) -> Tensor:
        """float64 [k, d]: the means of clusters by their `sums`; of one without points, its row of `empty`."""
        counts = sums[:, -1:].double()
        return torch.where(counts > 0, sums[:, :-1].double() * 2.0**-self._bits / counts.clamp(min=1), empty)

    def at(self, positions: Tensor) -> Tensor:
        """Points [m, d] by their numbers among all, on every process."""
        return self._share.at(self._rows, positions) - self._point


def kmeans(
    features: Tensor, k: int, *, seed: int = 0, iterations: int = 200, restarts: int = 1, distributed: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (Lloyd, 1982) from k random points, in the end on all points.

    Of many points (`SAMPLE`) random samples are clustered first; the best of the starts goes on with all points. Of
    so many that there are two samples, centroids move with momentum: they get farther in fewer iterations, and to a
    smaller inertia.

    Args:
        features: [n, d], any float dtype, CPU or CUDA.
        k: clusters, from 1 to n.
        seed: decides the k starting points.
        iterations: at most this many, at least 1, on a sample; on all points then half of them, and with two samples or
            more an eighth on each and on all (ten at least, if there are). It stops when no label changes. The log says
            how many.
        restarts: starts, at least 1, of which the one of the least inertia (sum of squared distances) counts; the
            first of them is that of `restarts=1`. With one start, chance decides much.
        distributed: the features are this process's share of all, in the order of the processes.

    Returns:
        Labels, int64 [n], of the nearest centroid (ties: the lower cluster), and centroids [k, d], float32
        (float64 for float64 features). A cluster that loses all its points keeps its centroid and may stay
        empty, as in the published USL code: nothing is split or moved.

    Raises:
        UslError: k or iterations out of range, or features not finite.

    Labels are those of exact distances (`assignment`), sums are exact integers (`Points`): the result is the same
    bits on any number of processes and threads, and on a GPU. Memory beyond the input: samples of a quarter or less of
    it, and about 0.2 GB; from 256 clusters on (float32 on the CPU) also 100 + k/16 bytes for each point, 356 at most,
    with which `GroupBounds` spares many of the products.
    """
    x = check_features(features)
    if x.device.type == "cpu":
        bounds = len(x) * (100 + 4 * _groups(k)) if k >= BOUNDS_FROM else 32 * len(x)
        check_memory(bounds + 200_000_000, f"k-means of {len(x)} points")
    with exact_arithmetic(x.device):
        points = Points(x, Share(len(x), x.device, distributed))
        if not 1 <= k <= points.count:
            raise UslError(f"k={k} clusters: expected a number from 1 to {points.count}, the points there are")
        if iterations < 1 or restarts < 1:
            raise UslError(f"iterations={iterations}, restarts={restarts} of k-means: expected at least 1")
        with progress(f"k-means of {k} clusters", iterations, "iteration") as bar:
            start, left, momentum = _best_start(points, k, seed, iterations, restarts)
            labels, centroids, converged = _lloyd(points, start, seed, left, momentum, bar.update)
        if converged:
            log.info("k-means: converged after %d iterations", converged)
        else:
            log.info("k-means: stopped after %d iterations, before convergence", left)
        return labels, (centroids + points.mean).to(x.dtype)


def shared_kmeans(
    features: Tensor, k: int, *, seed: int = 0, iterations: int = 200, restarts: int = 1
) -> tuple[Tensor, Tensor]:
    """`kmeans`, which a comparison computes once for all selectors that start from it."""
    how = (k, seed, iterations, restarts)
    return once(
        lambda: kmeans(features, k, seed=seed, iterations=iterations, restarts=restarts), features, "k-means", *how
    )


def _best_start(points: Points, k: int, seed: int, iterations: int, restarts: int) -> tuple[Tensor, int, float]:
    """Centroids [k, d], float64, to start from, how many iterations on all points to take at most, and their momentum.

    Of several starts those that end with the least inertia. Where all points are looked at they are the end of that
    start, from which one more iteration changes nothing. Many points are clustered on a sample first, then on samples
    of four times as many, and then on all, with half as many iterations: on 50,000 points of 128 dimensions the inertia
    ended within 0.2% of that of all iterations from random points. With two samples or more centroids have momentum,
    and an eighth of the iterations is taken on each and on all.
    """
    sizes = [max(SAMPLE, 20 * k)]
    while GROWTH**2 * sizes[-1] <= points.count:
        sizes.append(GROWTH * sizes[-1])
    large = points.count >= GROWTH * sizes[0]
    if restarts == 1 and not large:
        return _random_points(points, k, seed), iterations, 0.0
    many = len(sizes) > 1
    few, momentum = (min(iterations, max(FEWEST, iterations // SHARE)), MOMENTUM) if many else (iterations, 0.0)
    sampled = points.count > sizes[0]
    order = permutation(points.count, seed, "k-means sample") if sampled else None
    some = points if order is None else _Sample(points.at(order[: sizes[0]]))
    centroids = _best_of(some, k, seed, few, restarts, momentum, quickly=sampled)
    log.info("k-means: the best of %d starts on %d points", restarts, some.count)
    if order is None or not large:
        return centroids, iterations, 0.0
    for size in sizes[1:]:
        centroids = _lloyd(_Sample(points.at(order[:size])), centroids, seed, few, momentum)[1]
    return centroids, few if many else max(1, iterations // 2), momentum


def _best_of(
    points: Points, k: int, seed: int, iterations: int, restarts: int, momentum: float, quickly: bool
) -> Tensor:
    """Centroids [k, d] that the best of several starts ends with; quickly: the worse half is given up early."""
    starts = [_random_points(points, k, seed, *([number] if number else [])) for number in range(restarts)]
    while True:
        last = len(starts) <= FINALISTS or not quickly
        most = iterations if last else min(ROUND, iterations)
        ends = [_lloyd(points, start, seed, most, momentum) for start in starts]
        inertias = [_inertia(points, labels, k) for labels, _, _ in ends]
        order = sorted(range(len(ends)), key=inertias.__getitem__)
        if last:
            return ends[order[0]][1]
        starts = [ends[number][1] for number in sorted(order[: len(order) // 2])]


def _random_points(points: Points, k: int, seed: int, *which: int) -> Tensor:
    return points.at(permutation(points.count, seed, "k-means", *which)[:k]).double()


class _Sample(Points):
    """Points that are about the mean of others, and the same on every process."""

    def __init__(self, x: Tensor) -> None:
        self._share, self.count = Share(len(x), x.device, False), len(x)
        self._about(x, torch.zeros_like(x[0]))


def _inertia(points: Points, labels: Tensor, k: int) -> float:
    """Sum of squared distances of the points to the means of their clusters, less what no clusters change."""
    sums = points.sums(labels, k)
    means = points.means(sums, torch.zeros_like(sums[:, :-1], dtype=torch.float64))
    return -float((means.square().cpu().numpy().sum(1) * sums[:, -1].cpu().numpy()).sum())


def _lloyd(
    points: Points,
    centroids: Tensor,
    seed: int,
    iterations: int,
    momentum: float = 0.0,
    tell: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor, int]:
    """Labels, centroids and the number of iterations after which no label changed; 0 if some still did.

    Each iteration is told; most runs converge before the last.

    Args:
        points: all of them.
        centroids: [k, d], float64, to start from.
        seed: of the groups of centroids, where there are many.
        iterations: at most.
        momentum: which part of its last move a centroid makes again, until the last iterations or no label changes.
        tell: called after each.
    """
    k = len(centroids)
    assign = (Products(points.x) if momentum else _assignment(points.x, centroids, seed)).assign
    labels = assign(centroids)
    sums, last = points.sums(labels, k), centroids
    for iteration in range(1, iterations + 1):
        last, moved, centroids = centroids, centroids - last, points.means(sums, centroids)
        if momentum and iteration <= iterations - PLAIN:
            centroids = centroids + momentum * moved
        before, labels = labels, assign(centroids)
        other = torch.nonzero(before != labels)[:, 0]
        change = points.sums(labels[other], k, before[other], other)
        if not bool(change.any()):
            if not momentum:
                return labels, centroids, iteration
            momentum = 0.0
        sums += change
        tell()
    return labels, centroids, 0


def _groups(k: int) -> int:
    return max(1, min(k // GROUP_SIZE, MOST_GROUPS))


def _assignment(x: About, centroids: Tensor, seed: int) -> Products:
    """How the nearest of some centroids are found: of many by bounds, which need groups of near ones."""
    if len(centroids) < BOUNDS_FROM or x.device.type != "cpu" or x.dtype != torch.float32:
        return Products(x)
    some = _Sample(centroids.float())
    start = _random_points(some, _groups(len(centroids)), seed)
    return GroupBounds(x, torch.unique(_lloyd(some, start, seed, 10)[0], return_inverse=True)[1])
