"""k-means, and the point nearest to each centre; labels that would stand for little there move to where copies are.

Copies of an image, exact or nearly so, have all the label of one of them. k-means, whose centres lie between points,
does not see that: two sets of ten copies with a centre between them are as near to it as twenty images that differ. So
a label may move from a cluster where it stands for few images alone to a point of another where it would for many.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.compute.device import chunks
from usl_lightning.compute.distributed import Share
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.assignment import pair_distances
from usl_lightning.vectors.coverage import kernel
from usl_lightning.vectors.density import best_of_each, fill_to_budget, occupied
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, unit_rows
from usl_lightning.vectors.kmeans import kmeans, shared_kmeans

WIDTH = 0.85
"""Of the kernel that says what a pick covers, σ², in mean squared distances to a centroid."""

PASSES = 10
"""Over all labels, after which they stay where they are."""

LARGEST = 5_000
"""Points of a cluster in which all pairs are compared; none moves into a larger one, where few copies matter less."""

LEAST = 0.01
"""Images for which no label moves: rounding may make up so many."""

STEP = 1 / 1024
"""Of an image, and of a kernel, to which both are rounded before they are compared: the same in any order of adding."""

EQUAL = 1e-5
"""Share by which gains may differ that count as equal, as those of copies do but for rounding."""


def select_kmeans_nearest(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    iterations: int = 200,
    restarts: int = 20,
    move: float | None = None,
    on_clusters: Callable[[Tensor], None] | None = None,
    distributed: bool = False,
) -> Tensor:
    """One cluster for each label to buy (Lloyd, 1982), and of each cluster the point nearest to its centroid.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n; also the number of clusters.
        seed: decides the starting points of k-means.
        iterations: of k-means, at most.
        restarts: starts of k-means, of which the best counts.
        move: a label moves to where it would stand for more than `move` times the images that it stands for alone, at
            least 1; see `_moved`. None: none does. Where no images are much alike, hardly any does with 4.
        on_clusters: is given the cluster of each point, int64 [n].
        distributed: the features are this process's share of all images, in the order of the processes. The choice is
            the same on each of them, and for any number of them.

    Returns:
        int64 [budget], distinct, in cluster order; for empty clusters, the remaining points nearest to their
        own centroid. Ties to the lower index. What moves keeps its place in the order.

    Raises:
        UslError: budget, iterations or move out of range, features not finite or with rows of zeros.
    """
    if move is not None and not move >= 1:
        raise UslError(f"move={move}: expected None or a number of times of at least 1")
    share = Share(len(features), features.device, distributed)
    check_budget(budget, share.count)
    x = unit_rows(features)
    cluster = partial(kmeans, distributed=True) if distributed else shared_kmeans
    labels, centroids = cluster(x, budget, seed=seed, iterations=iterations, restarts=restarts)
    if on_clusters is not None:
        on_clusters(labels)
    distances = pair_distances(x, centroids, torch.arange(len(x), device=x.device), labels).float()
    clusters, labels = occupied(labels, budget, share)
    picks = fill_to_budget(best_of_each(-distances, labels, clusters, share), -distances, budget, share)
    return picks if move is None else _moved(x, picks, labels, distances, move, share)


def _moved(x: Tensor, picks: Tensor, labels: Tensor, distances: Tensor, factor: float, share: Share) -> Tensor:
    """Picks of which some have moved, so that each stands for many images.

    An image is covered by a pick as far as exp(-|x - p|²/σ²) says, see `WIDTH`.
    A pick stands alone for what is covered less without it, summed over all images; a point would stand for what its
    cluster's images are covered more with it. The pick that stands for least takes the place of the point that would
    stand for most if that is more than `factor` times as much, then the next, a cluster gaining one in a pass at most.

    Args:
        x: unit rows [n, d], of this process.
        picks: int64 [k], among all points.
        labels: int64 [n], the cluster of each point.
        distances: [n], squared, of each point to the centroid of its cluster.
        factor: at least 1.
        share: of all points.
    """
    sigma = float((WIDTH * share.total(distances.double().sum()) / share.count).sqrt())
    if len(picks) == 1 or not sigma > 0:
        return picks
    clusters = int(share.largest(labels.max())) + 1
    with exact_arithmetic(x.device):
        for _ in range(PASSES):
            points = share.at(x, picks)
            cover, worth = _worth(x, points, sigma, share)
            gains = _gains(x, labels, cover, sigma, clusters, share)
            most = share.largest(gains.new_zeros(clusters).scatter_reduce_(0, labels, gains, "amax"))
            rivals = torch.where(gains >= most[labels] * (1 - EQUAL), -distances, -torch.inf)
            places = best_of_each(rivals, labels, clusters, share)
            nearest = _nearest_other(points, sigma)
            before, picks = picks, _exchange(picks, worth, nearest, places, _rounded(most), factor)
            if torch.equal(before, picks):
                break
    return picks


def _exchange(picks: Tensor, worth: Tensor, nearest: Tensor, places: Tensor, gains: Tensor, factor: float) -> Tensor:
    """Picks [k] of which those worth least have taken the `places` [c] that gain most.

    Of two that are each other's nearest one stays: what it stands for is known again when the other has gone.
    """
    picks, waiting, neighbor = picks.clone(), set(range(len(picks))), nearest.tolist()
    taken = 0
    order = gains.argsort(descending=True, stable=True)
    for label in worth.argsort(stable=True).tolist():
        if taken == len(order) or not bool(gains[order[taken]] > factor * worth[label] + LEAST):
            break
        if {label, neighbor[label]} <= waiting:
            picks[label] = places[order[taken]]
            waiting -= {label, neighbor[label]}
            taken += 1
    return picks


def _worth(x: Tensor, points: Tensor, sigma: float, share: Share) -> tuple[Tensor, Tensor]:
    """How far each row of x is covered by the picks [k, d], float32 [n]; what each stands for alone, float64 [k]."""
    cover, alone = torch.empty_like(x[:, 0]), torch.empty_like(x[:, 0])
    by = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for rows in chunks(len(x), 12 * len(points), x.device):
        two = kernel(x[rows], points, sigma).topk(2, dim=1)
        cover[rows], by[rows] = two.values[:, 0], two.indices[:, 0]
        alone[rows] = two.values[:, 0] - two.values[:, 1]
    worth = torch.zeros(len(points), dtype=torch.float64, device=x.device).index_add_(0, by, alone.double())
    return cover, _rounded(share.total(worth))


def _rounded(values: Tensor) -> Tensor:
    return (values / STEP).round_() * STEP


def _nearest_other(points: Tensor, sigma: float) -> Tensor:
    """int64 [k]: which other pick is nearest to each."""
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    for rows in chunks(len(points), 12 * len(points), points.device):
        near = _rounded(kernel(points[rows], points, sigma))
        own = torch.arange(rows.start, rows.start + len(near), device=points.device)
        nearest[rows] = near.scatter_(1, own[:, None], -1.0).argmax(1)
    return nearest


def _gains(x: Tensor, labels: Tensor, cover: Tensor, sigma: float, clusters: int, share: Share) -> Tensor:
    """How much more each point would cover of its own cluster, float64 [n]; 0 in clusters of more than `LARGEST`."""
    gains = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    sizes = share.total(torch.bincount(labels, minlength=clusters))
    members = _by_cluster(labels, clusters)
    for others, of, covered in zip(share.each(x), share.each(labels), share.each(cover), strict=True):
        for own, theirs, size in zip(members, _by_cluster(of, clusters), sizes.tolist(), strict=True):
            for part in chunks(len(own) if size <= LARGEST else 0, 12 * max(1, len(theirs)), x.device):
                more = kernel(x[own[part]], others[theirs], sigma) - covered[theirs]
                gains[own[part]] += more.clamp_(min=0).sum(1, dtype=torch.float64)
    return gains


def _by_cluster(labels: Tensor, clusters: int) -> tuple[Tensor, ...]:
    """The rows of each cluster."""
    counts: list[int] = torch.bincount(labels, minlength=clusters).tolist()
    return torch.split(labels.argsort(stable=True), counts)


class KMeansNearest(Selector):
    """k-means as one stage: the features of the images, then `select_kmeans_nearest`.

    Args:
        iterations: of k-means, at most.
        restarts: starts of k-means, of which the one of the least inertia counts.
        move: see `select_kmeans_nearest`.
        sharded: each process has its share of the features and no more; what is chosen is what one process chooses
            that has all.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {"iterations": whole(1), "restarts": whole(1), "move": at_least(1)}

    def __init__(
        self,
        iterations: int = 200,
        restarts: int = 20,
        move: float | None = None,
        sharded: bool = False,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self.shard(sharded)
        self._select = partial(
            select_kmeans_nearest, iterations=iterations, restarts=restarts, move=move, distributed=sharded
        )

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_kmeans_nearest`."""
        return self._select(features, self.budget, seed=seed, on_clusters=None if self.sharded else self.note_clusters)
