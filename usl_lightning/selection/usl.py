"""USL: training-free unsupervised selective labelling (Wang, Lian, Yu, ECCV 2022, section 2.2)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.progress import progress
from usl_lightning.base.ranges import Ranges, at_least, check, whole, whole_from, within
from usl_lightning.compute.device import chunks, in_threads
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

log = logging.getLogger("usl_lightning")

Utility = Literal["inverse", "cosine"]
"""U = 1/mean_distance; or U = 1 - mean_distance/2, the mean cosine of unit rows if that is of squared distances, which
the paper finds worse (§6.6)."""


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """How the picks of the other clusters keep a point from being picked (section 2.2).

    Attributes:
        weight: λ, against the utility.
        alpha: exponent of the *squared* distance, as in the published code (the paper's text has the plain one).
        momentum: m_reg, of its moving average.
        iterations: picks in all, as the published code counts; the first is not regularised.
        horizon: only picks at a squared distance below this count; None: no limit.
        nearest: only this many nearest picks of any cluster count (taken before anything is excluded; ties: the lower
            cluster); None: all.
        exclude_same_cluster: whether the own cluster's pick has no effect on a point. If it has, only a distance of
            exactly 0 (the point itself, its duplicates) is ignored.
    """

    weight: float
    alpha: float
    momentum: float
    iterations: int
    horizon: float | None = None
    nearest: int | None = None
    exclude_same_cluster: bool = True

    def closeness(self, x: Tensor, labels: Tensor, picks: Tensor) -> Tensor:
        """Σ 1/(d²)^alpha of every point to the picks that count for it; float64 [n]; a row of `picks` is a cluster's.

        Distances are float32, sums float64; time and memory: n·m distances, in chunks of 64 MB.
        """
        out = torch.empty(len(x), dtype=torch.float64, device=x.device)
        clusters = torch.arange(len(picks), device=x.device)

        def add(rows: slice) -> None:
            distances, at = squared_distances(x[rows], picks), clusters
            if self.nearest is not None and self.nearest < len(picks):
                near = _among_nearest(distances, self.nearest)
                at = torch.nonzero(near)[:, 1].view(len(distances), self.nearest)
                distances = distances.gather(1, at)
            counts = labels[rows, None] != at if self.exclude_same_cluster else distances > 0
            if self.horizon is not None:
                counts &= distances < self.horizon
            inverse = distances.double().clamp_(min=SMALLEST).pow_(-self.alpha)
            out[rows] = inverse.mul_(counts).sum(1)

        list(in_threads(add, chunks(len(x), 32 * len(picks), x.device), x.device))
        return out


@dataclass(frozen=True, kw_only=True)
class Preset(Regularizer):
    """The published settings for one data set (Table 14, and the code that made the tables).

    Attributes:
        k: neighbours in the density.
        kmeans_iterations: at most this many.
    """

    k: int
    kmeans_iterations: int


class Settings(TypedDict, total=False):
    """What may be given in place of a preset's."""

    k: int | None
    weight: float | None
    alpha: float | None
    momentum: float | None
    iterations: int | None
    horizon: float | None
    nearest: int | None
    exclude_same_cluster: bool | None
    kmeans_iterations: int | None


PRESETS = {
    "cifar10": Preset(k=400, weight=0.5, alpha=0.5, momentum=0.9, iterations=10, horizon=4.0, kmeans_iterations=200),
    "cifar100": Preset(k=400, weight=1.0, alpha=1.0, momentum=0.9, iterations=10, horizon=1.0, kmeans_iterations=200),
    "imagenet": Preset(
        k=20, weight=1.5, alpha=0.5, momentum=0.0, iterations=2, nearest=128, exclude_same_cluster=False,
        kmeans_iterations=100,
    ),
    "imagenet_clip": Preset(
        k=20, weight=0.05, alpha=1.0, momentum=0.0, iterations=2, nearest=32, kmeans_iterations=100,
    ),
}  # fmt: skip
"""cifar10: up to 100 labels; cifar100: more; imagenet: MoCo features; imagenet_clip: CLIP features."""

PresetName = Literal["cifar10", "cifar100", "cifar", "imagenet", "imagenet_clip"]

BY_BUDGET = "cifar"
"""The preset that is cifar10 or cifar100 by the budget, as Table 14 has them for small-scale data sets."""


def select_usl(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    preset: str = "cifar10",
    clusters: int | None = None,
    kmeans_restarts: int = 1,
    squared: bool = True,
    include_self: bool = True,
    utility: Utility = "inverse",
    on_clusters: Callable[[Tensor], None] | None = None,
    distributed: bool = False,
    **settings: Unpack[Settings],
) -> Tensor:
    """The `budget` images worth labelling: one per k-means cluster, dense, and far from the others chosen.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n.
        seed: of k-means.
        preset: one of `PRESETS`, or "cifar", which is cifar10 up to 100 labels and cifar100 beyond.
        clusters: of k-means, from the budget to a twentieth more; None: the budget. The published 12,820 labels of
            ImageNet (1%) come of 12,900, as some become empty; of those left, the first `budget` in cluster order are
            taken. With many more, most clusters would be dropped by chance.
        squared, include_self: the density as in the published code, which made the paper's tables: mean
            *squared* distance, the point itself among the k. False, False: the paper's text.
        utility: see `Utility`; the cosine is of the squared distances.
        kmeans_restarts: starts of k-means, of which the one of the least inertia counts; published: one.
        on_clusters: is given the k-means cluster of each image, int64 [n].
        distributed: the features are this process's share of all images, in the order of the processes; neighbours
            are exact then. The choice is the same on each of them, and for any number of them.
        settings: in place of the preset's, unless None: see `Preset`. Neighbours are n/10 at most (at least 1, and 2 if
            the point itself is counted, whose distance of 0 alone says nothing), which the log tells. Limits are lifted
            by horizon=inf (`.inf` in YAML) and by a nearest as large as the clusters are many.

    Returns:
        int64 [budget], distinct, in cluster order; then those that stand in for empty clusters.

    Raises:
        UslError: features not finite or with rows of zeros, an unknown preset, or a parameter out of range.
    """
    share = Share(len(features), features.device, distributed)
    check_budget(budget, share.count)
    how = _settled(preset, budget, settings)
    x = unit_rows(features)
    density = {"squared": squared or utility == "cosine", "include_self": include_self}
    if distributed:
        mean_distance = spread_density(x, limit_k(how.k, share.count, include_self), share, **density)
    else:
        mean_distance = limited_density(x, how.k, **density)
    count = _clusters(budget if clusters is None else clusters, budget, share.count)
    cluster = partial(kmeans, distributed=True) if distributed else shared_kmeans
    labels, _ = cluster(x, count, seed=seed, iterations=how.kmeans_iterations, restarts=kmeans_restarts)
    if on_clusters is not None:
        on_clusters(labels)
    rule: dict[str, Any] = {field.name: getattr(how, field.name) for field in fields(Regularizer)}
    return regularized_selection(
        x, mean_distance, labels, budget=budget, utility=utility, distributed=distributed, **rule
    )


def _clusters(given: int, budget: int, count: int) -> int:
    most = min(count, budget + budget // 20)
    if not budget <= given <= most:
        raise UslError(
            f"clusters={given} for a budget of {budget}: expected {budget} to {most}; with more, whose picks count "
            "would be chance"
        )
    return given


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
        weight, alpha, momentum, iterations, horizon, nearest, exclude_same_cluster: see `Regularizer`.
        budget: how many to return; None: one per non-empty cluster.
        utility: see `Utility`.
        distributed: the rows are this process's share of all, in the order of the processes.

    Returns:
        int64 [budget], distinct: the picks in order of their cluster, cut at the budget; missing ones are
        the best remaining points by U. Ties always go to the lower index.

    Raises:
        UslError: shapes that do not fit, values not finite, or a parameter out of range.
    """
    x = check_features(features)
    _check(x, mean_distance, cluster_labels)
    rule = Regularizer(
        weight=weight, alpha=alpha, momentum=momentum, iterations=iterations, horizon=horizon, nearest=nearest,
        exclude_same_cluster=exclude_same_cluster,
    )  # fmt: skip
    check(USL, vars(rule))
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
                closeness = rule.closeness(x, labels, share.at(x, picks))
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


def _among_nearest(distances: Tensor, nearest: int) -> Tensor:
    """bool [a, m]: whether an entry is one of its row's `nearest` smallest; ties to the lower column."""
    if distances.device.type == "cpu":  # NumPy's partition takes a fraction of torch's time
        last = torch.from_numpy(np.partition(distances.numpy(), nearest - 1)[:, nearest - 1, None])
    else:
        last = distances.kthvalue(nearest, dim=1, keepdim=True).values
    among = distances <= last
    more = torch.nonzero(among.sum(1) > nearest)[:, 0]
    if len(more):
        below, tied = distances[more] < last[more], distances[more] == last[more]
        room = nearest - below.sum(1, keepdim=True)
        among[more] = below | (tied & (tied.cumsum(1) <= room))
    return among


def _check(x: Tensor, mean_distance: Tensor, cluster_labels: Tensor) -> None:
    if mean_distance.shape != x.shape[:1] or cluster_labels.shape != x.shape[:1]:
        raise UslError(
            f"mean_distance {list(mean_distance.shape)} and cluster_labels {list(cluster_labels.shape)}: "
            f"expected one number for each of the {len(x)} rows of features"
        )
    if not torch.isfinite(mean_distance).all() or mean_distance.min() < 0:
        raise UslError("mean_distance: expected finite numbers, none below 0")
    if cluster_labels.is_floating_point() or cluster_labels.min() < 0:
        raise UslError("cluster_labels: expected integers, none below 0")


def _settled(preset: str, budget: int, settings: Settings) -> Preset:
    """The preset with what was given in its place."""
    name = ("cifar10" if budget <= 100 else "cifar100") if preset == BY_BUDGET else preset
    if name not in PRESETS:
        known = (*PRESETS, BY_BUDGET)
        raise UslError(f"preset {name!r}{did_you_mean(name, known)}: expected one of {', '.join(known)}")
    return replace(PRESETS[name], **{key: value for key, value in settings.items() if value is not None})  # type: ignore[arg-type]


class USL(Selector):
    """USL as one stage: the features of an encoder, then `select_usl`.

    The published runs on ImageNet look at the 128 outputs of MoCo's head, or at CLIP's image embedding; a selection
    from a checkpoint looks at the encoder's features, of ResNet-50 2,048. To repeat theirs, write their features to a
    file and give that (`model.features`).

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
        preset: PresetName = "cifar10",
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
        settings: Settings = {
            "k": k, "weight": weight, "alpha": alpha, "momentum": momentum, "iterations": iterations,
            "horizon": horizon, "nearest": nearest, "exclude_same_cluster": exclude_same_cluster,
            "kmeans_iterations": kmeans_iterations,
        }  # fmt: skip
        self._used, self._include_self, self._clusters = _settled(preset, self.budget, settings), include_self, clusters
        self._select = partial(
            select_usl, preset=preset, clusters=clusters, kmeans_restarts=kmeans_restarts, squared=squared,
            include_self=include_self, utility=utility, distributed=sharded, **settings,
        )  # fmt: skip

    def settled(self, n: int) -> dict[str, Any]:
        """The neighbours in the density, and how many nearest picks there are to look at."""
        used = {"k": limit_k(self._used.k, n, self._include_self)}
        return used if self._used.nearest is None else used | {"nearest": min(self._used.nearest, self._most)}

    @property
    def _most(self) -> int:
        """The clusters, each of which has one pick."""
        return self.budget if self._clusters is None else self._clusters

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_usl`."""
        if self._used.nearest is not None and self._used.nearest > self._most:
            log.info("USL: nearest = %d instead of %d, all picks that there are", self._most, self._used.nearest)
        return self._select(features, self.budget, seed=seed, on_clusters=None if self.sharded else self.note_clusters)
