"""USL: training-free unsupervised selective labelling (Wang, Lian, Yu, ECCV 2022, section 2.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.progress import progress
from usl_lightning.base.ranges import Ranges, at_least, whole, whole_from, within
from usl_lightning.compute.device import chunks
from usl_lightning.compute.distributed import Share
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.density import (
    SMALLEST,
    best_of_each,
    fill_to_budget,
    limit_k,
    limited_density,
    occupied,
    spread_density,
)
from usl_lightning.vectors.distances import check_budget, check_features, exact_arithmetic, squared_distances, unit_rows
from usl_lightning.vectors.kmeans import kmeans, shared_kmeans

T = TypeVar("T")

Utility = Literal["inverse", "cosine"]


@dataclass(frozen=True)
class Preset:
    """The published settings for one data set (Table 14, and the code that made the tables).

    Attributes:
        k: neighbours in the density.
        weight: λ, of the regulariser against the utility.
        alpha: exponent of the squared distance in the regulariser.
        momentum: m_reg, of the regulariser's moving average.
        iterations: picks in all; the first is not regularised.
        horizon: squared distance from which a selected point has no effect; None: no limit.
        nearest: only this many nearest selected points count; None: all.
        exclude_same_cluster: whether a cluster's own selected point has no effect on it.
        kmeans_iterations: at most this many.
    """

    k: int
    weight: float
    alpha: float
    momentum: float
    iterations: int
    horizon: float | None
    nearest: int | None
    exclude_same_cluster: bool
    kmeans_iterations: int


PRESETS = {
    "cifar10": Preset(400, 0.5, 0.5, 0.9, 10, 4.0, None, True, 200),
    "cifar100": Preset(400, 1.0, 1.0, 0.9, 10, 1.0, None, True, 200),
    "imagenet": Preset(20, 1.5, 0.5, 0.0, 2, None, 128, False, 100),
    "imagenet_clip": Preset(20, 0.05, 1.0, 0.0, 2, None, 32, True, 100),
}
"""cifar10: up to 100 labels; cifar100: more; imagenet: MoCo features; imagenet_clip: CLIP features."""

BY_BUDGET = "cifar"
"""The preset that is cifar10 or cifar100 by the budget, as Table 14 has them for small-scale data sets."""


def select_usl(
    features: Tensor,
    budget: int,
    *,
    k: int | None = None,
    seed: int = 0,
    preset: str = "cifar10",
    clusters: int | None = None,
    weight: float | None = None,
    alpha: float | None = None,
    momentum: float | None = None,
    iterations: int | None = None,
    horizon: float | None = None,
    nearest: int | None = None,
    exclude_same_cluster: bool | None = None,
    kmeans_iterations: int | None = None,
    kmeans_restarts: int = 1,
    squared: bool = True,
    include_self: bool = True,
    utility: Utility = "inverse",
    on_clusters: Callable[[Tensor], None] | None = None,
    distributed: bool = False,
) -> Tensor:
    """The `budget` images worth labelling: one per k-means cluster, dense, and far from the others chosen.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n.
        seed: decides the starting points of k-means.
        preset: one of `PRESETS`, or "cifar", which is cifar10 up to 100 labels and cifar100 beyond; it gives every
            parameter that is left None. (To lift a preset's limits: horizon=inf, which is `.inf` in YAML, and nearest
            as large as the clusters are many.)
        clusters: of k-means, from the budget to a twentieth more; None: the budget. The published 12,820 labels of
            ImageNet (1%) come of 12,900, as some become empty; of those left, the first `budget` in cluster order are
            taken. With many more, most clusters would be dropped by chance.
        k: neighbours in the density; at most n/10 (at least 1, and 2 if the point itself is counted, whose
            distance of 0 alone says nothing), which the log tells.
        squared, include_self: the density as in the published code, which made the paper's tables: mean
            *squared* distance, the point itself among the k. False, False: the paper's text.
        utility: "inverse" of that distance, or the mean "cosine" to the k nearest, which the paper finds worse
            (§6.6); it is of the squared distances.
        weight, alpha, momentum, iterations, horizon, nearest, exclude_same_cluster, kmeans_iterations:
            see `Preset`.
        kmeans_restarts: starts of k-means, of which the one of the least inertia counts; published: one.
        on_clusters: is given the k-means cluster of each image, int64 [n].
        distributed: the features are this process's share of all images, in the order of the processes; neighbours
            are exact then. The choice is the same on each of them, and for any number of them.

    Returns:
        int64 [budget], distinct, in cluster order; then those that stand in for empty clusters.

    Raises:
        UslError: budget out of range, features not finite or with rows of zeros, an unknown preset, or a
            parameter out of range.

    The published runs on ImageNet look at the 128 outputs of MoCo's head, or at CLIP's image embedding; a selection
    from a checkpoint (`USL`) looks at the encoder's features, of ResNet-50 2,048. To repeat theirs, write their
    features to a file and give that (`model.features`).
    """
    share = Share(len(features), features.device, distributed)
    check_budget(budget, share.count)
    base = _preset(preset, budget)
    x = unit_rows(features)
    squared = squared or utility == "cosine"
    density = {"squared": squared, "include_self": include_self}
    if distributed:
        mean_distance = spread_density(x, limit_k(_or(k, base.k), share.count, include_self), share, **density)
    else:
        mean_distance = limited_density(x, _or(k, base.k), **density)
    clusters = budget if clusters is None else clusters
    most = min(share.count, budget + budget // 20)
    if not budget <= clusters <= most:
        raise UslError(
            f"clusters={clusters} for a budget of {budget}: expected {budget} to {most}; with more, whose picks count "
            "would be chance"
        )
    steps = _or(kmeans_iterations, base.kmeans_iterations)
    cluster = partial(kmeans, distributed=True) if distributed else shared_kmeans
    labels, _ = cluster(x, clusters, seed=seed, iterations=steps, restarts=kmeans_restarts)
    if on_clusters is not None:
        on_clusters(labels)
    return regularized_selection(
        x,
        mean_distance,
        labels,
        weight=_or(weight, base.weight),
        alpha=_or(alpha, base.alpha),
        momentum=_or(momentum, base.momentum),
        iterations=_or(iterations, base.iterations),
        budget=budget,
        horizon=_or(horizon, base.horizon),
        nearest=_or(nearest, base.nearest),
        exclude_same_cluster=_or(exclude_same_cluster, base.exclude_same_cluster),
        utility=utility,
        distributed=distributed,
    )


def regularized_selection(
    features: Tensor,
    mean_distance: Tensor,
    cluster_labels: Tensor,
    *,
    weight: float,
    alpha: float,
    momentum: float,
    iterations: int,
    budget: int | None = None,
    horizon: float | None = None,
    nearest: int | None = None,
    exclude_same_cluster: bool = True,
    utility: Utility = "inverse",
    distributed: bool = False,
) -> Tensor:
    """Pick one point per cluster, dense and away from the picks of the others (section 2.2, Algorithm 1).

    With U = 1/mean_distance, Reg = 0: pick per cluster argmax(U - weight·Reg), then update
    Reg ← momentum·Reg + (1 - momentum)·Σ 1/(d²)^alpha over the picks, `iterations` picks in all.

    Args:
        features: [n, d], used as they are.
        mean_distance: [n], see `density_distance`.
        cluster_labels: integers [n], ≥ 0; not every number need occur.
        weight: λ. alpha: exponent of the *squared* distance, as in the published code (the paper's text
            has the plain one), 0 … 20. momentum: m_reg, 0 … 1.
        iterations: number of picks, as the published code counts; with 1, Reg never acts.
        budget: how many to return; None: one per non-empty cluster.
        horizon: only picks at d² below this count, ≥ 0; None: no limit.
        nearest: only this many nearest picks of any cluster count (taken before anything is excluded;
            ties: the lower cluster); None: all.
        exclude_same_cluster: whether the own cluster's pick has no effect on a point. If it has, only a
            distance of exactly 0 (the point itself, its duplicates) is ignored.
        utility: "inverse": U as above; "cosine": U = 1 - mean_distance/2, the mean cosine of unit rows if that is of
            squared distances.
        distributed: the rows are this process's share of all, in the order of the processes.

    Returns:
        int64 [budget], distinct: the picks in order of their cluster, cut at the budget; missing ones are
        the best remaining points by U. Ties always go to the lower index.

    Raises:
        UslError: shapes that do not fit, values not finite, or a parameter out of range.

    Distances are float32, sums float64. Time and memory: n·m distances an iteration, in chunks of 64 MB.
    """
    x = check_features(features)
    _check(x, mean_distance, cluster_labels, weight, alpha, momentum, iterations, horizon, nearest)
    share = Share(len(x), x.device, distributed)
    if budget is not None:
        check_budget(budget, share.count)
    u = _utility(mean_distance.to(x.device, torch.float64), utility)
    numbers = cluster_labels.to(x.device)
    clusters, labels = occupied(numbers, int(share.largest(numbers.max())) + 1, share)
    penalty = torch.zeros_like(u)
    with exact_arithmetic(x.device):
        picks = best_of_each(u, labels, clusters, share)
        with progress("regularised selection", iterations - 1, "iteration") as bar:
            for _ in range(iterations - 1):
                closeness = _closeness(x, labels, share.at(x, picks), alpha, horizon, nearest, exclude_same_cluster)
                penalty = momentum * penalty + (1 - momentum) * closeness
                picks = best_of_each(u - weight * penalty, labels, clusters, share)
                bar.update()
    return picks if budget is None else fill_to_budget(picks, u, budget, share)


def _utility(mean_distance: Tensor, utility: Utility) -> Tensor:
    if utility == "inverse":
        return 1 / mean_distance.clamp(min=SMALLEST)
    if utility == "cosine":
        return 1 - mean_distance / 2
    raise UslError(f"utility {utility!r}: expected inverse or cosine")


def _closeness(
    x: Tensor,
    labels: Tensor,
    picks: Tensor,
    alpha: float,
    horizon: float | None,
    nearest: int | None,
    exclude_same_cluster: bool,
) -> Tensor:
    """Σ 1/(d²)^alpha of every point to the picks that count for it; float64 [n]. picks[c] [d] is cluster c's."""
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    clusters = torch.arange(len(picks), device=x.device)
    for rows in chunks(len(x), 32 * len(picks), x.device):
        distances = squared_distances(x[rows], picks)
        if exclude_same_cluster:
            counts = labels[rows, None] != clusters
        else:
            counts = distances > 0
        if horizon is not None:
            counts &= distances < horizon
        if nearest is not None and nearest < len(picks):
            counts &= _among_nearest(distances, nearest)
        inverse = distances.double().clamp_(min=SMALLEST).pow_(-alpha)
        out[rows] = inverse.mul_(counts).sum(1)
    return out


def _among_nearest(distances: Tensor, nearest: int) -> Tensor:
    """bool [a, m]: whether an entry is one of its row's `nearest` smallest; ties to the lower column."""
    last = distances.kthvalue(nearest, dim=1, keepdim=True).values
    below, tied = distances < last, distances == last
    room = nearest - below.sum(1, keepdim=True)
    return below | (tied & (tied.cumsum(1) <= room))


def _check(
    x: Tensor,
    mean_distance: Tensor,
    cluster_labels: Tensor,
    weight: float,
    alpha: float,
    momentum: float,
    iterations: int,
    horizon: float | None,
    nearest: int | None,
) -> None:
    if mean_distance.shape != x.shape[:1] or cluster_labels.shape != x.shape[:1]:
        raise UslError(
            f"mean_distance {list(mean_distance.shape)} and cluster_labels {list(cluster_labels.shape)}: "
            f"expected one number for each of the {len(x)} rows of features"
        )
    if not torch.isfinite(mean_distance).all() or mean_distance.min() < 0:
        raise UslError("mean_distance: expected finite numbers, none below 0")
    if cluster_labels.is_floating_point() or cluster_labels.min() < 0:
        raise UslError("cluster_labels: expected integers, none below 0")
    ranges = {
        "weight": (weight, 0, float("inf")),
        "alpha": (alpha, 0, 20),
        "momentum": (momentum, 0, 1),
        "iterations": (iterations, 1, float("inf")),
        "nearest": (1 if nearest is None else nearest, 1, float("inf")),
    }
    if horizon is not None and not horizon >= 0:
        raise UslError(f"horizon={horizon}: expected a squared distance, 0 or more (inf, in YAML .inf: no limit)")
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high or value == float("inf"):
            raise UslError(f"{name}={value}: expected a number from {low} to {high}")


def _preset(name: str, budget: int) -> Preset:
    if name == BY_BUDGET:
        return PRESETS["cifar10" if budget <= 100 else "cifar100"]
    if name not in PRESETS:
        known = (*PRESETS, BY_BUDGET)
        raise UslError(f"preset {name!r}{did_you_mean(name, known)}: expected one of {', '.join(known)}")
    return PRESETS[name]


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


class USL(Selector):
    """USL as one stage: the features of an encoder, then `select_usl`.

    Args:
        preset: published settings to start from: cifar10, cifar100, cifar, which of both by the budget, imagenet or
            imagenet_clip.
        clusters: of k-means, from the budget, which it is if not given, to a twentieth more.
        k, weight, alpha, momentum, iterations, horizon, nearest, exclude_same_cluster, kmeans_iterations: in
            place of the preset's, see `Preset`; a horizon of .inf is none.
        kmeans_restarts: starts of k-means, of which the one of the least inertia counts; published: one.
        squared, include_self: the density as in the published code (true) or the paper's text (false).
        utility: the inverse of the mean distance, or the mean cosine.
        sharded: each process has its share of the features and no more; what is chosen is what one process chooses
            that has all (and looks for neighbours exactly, as it does up to 70,000 images).
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {
        "clusters": whole_from("budget", more=20),
        "k": whole(1),
        "weight": at_least(0),
        "alpha": within(0, 20),
        "momentum": within(0, 1),
        "iterations": whole(1),
        "horizon": at_least(0, infinite=True),
        "nearest": whole(1),
        "kmeans_iterations": whole(1),
        "kmeans_restarts": whole(1),
    }

    def __init__(
        self,
        preset: str = "cifar10",
        clusters: int | None = None,
        k: int | None = None,
        weight: float | None = None,
        alpha: float | None = None,
        momentum: float | None = None,
        iterations: int | None = None,
        horizon: float | None = None,
        nearest: int | None = None,
        exclude_same_cluster: bool | None = None,
        kmeans_iterations: int | None = None,
        kmeans_restarts: int = 1,
        squared: bool = True,
        include_self: bool = True,
        utility: Utility = "inverse",
        sharded: bool = False,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self.shard(sharded)
        self._k, self._include_self = _or(k, _preset(preset, self.budget).k), include_self
        self._select = partial(
            select_usl,
            preset=preset,
            clusters=clusters,
            k=k,
            weight=weight,
            alpha=alpha,
            momentum=momentum,
            iterations=iterations,
            horizon=horizon,
            nearest=nearest,
            exclude_same_cluster=exclude_same_cluster,
            kmeans_iterations=kmeans_iterations,
            kmeans_restarts=kmeans_restarts,
            squared=squared,
            include_self=include_self,
            utility=utility,
            distributed=sharded,
        )

    def settled(self, n: int) -> dict[str, Any]:
        """The neighbours in the density."""
        return {"k": limit_k(self._k, n, self._include_self)}

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_usl`."""
        return self._select(features, self.budget, seed=seed, on_clusters=None if self.sharded else self.note_clusters)
