"""ProbCover: cover as many points as possible with balls (Yehuda, Dekel, Hacohen, Weinshall, NeurIPS 2022)."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import counted, shown
from usl_lightning.base.ranges import Ranges, above, whole, within
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, squared_distances, unit_rows
from usl_lightning.vectors.kmeans import shared_kmeans

log = logging.getLogger(__name__)

SMALLEST_RADIUS = 0.003
"""Nearer points cannot be told apart from their float32 products."""

RADIUS_SAMPLE = 5_000
"""Points that the choice of the radius looks at."""


def select_probcover(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    delta: float | None = None,
    purity: float = 0.95,
    clusters: int | None = None,
    on_radius: Callable[[float], None] | None = None,
) -> Tensor:
    """Greedily the point whose ball of radius δ holds the most points not covered yet (Algorithm 1).

    When every point is covered and the budget is not spent, all count as uncovered again.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n.
        seed: decides the starting points of k-means, and the sample, when δ has to be chosen.
        delta: δ > 0 on the unit sphere; at least 0.003. None: `pure_radius`.
        purity: 0 … 1, for `pure_radius`.
        clusters: for `pure_radius`; None: the budget, but at least 10 (the paper has the number of classes,
            which is not known here).
        on_radius: is given δ.

    Returns:
        int64 [budget], distinct, in order of choice; ties to the lower index.

    Raises:
        UslError: a parameter out of range, features not finite or with rows of zeros.

    Time: 2n² products, whatever the budget is. Memory: no graph is stored; 64 MB (512 MB on a GPU) at once.
    """
    check_budget(budget, len(features))
    x = unit_rows(features)
    if clusters is not None and clusters > len(x):
        raise UslError(f"model.clusters: {clusters} for {len(x)} images; use at most {len(x)}")
    if delta is None:
        wanted = usual_clusters(budget, len(x)) if clusters is None else clusters
        delta = pure_radius(x, wanted, purity=purity, seed=seed)
        log.info("ProbCover: radius %.3f, at which %g of the balls are pure", delta, purity)
    elif not delta > 0:
        raise UslError(f"delta={delta}: expected a radius above 0")
    delta = max(delta, SMALLEST_RADIUS)
    if on_radius is not None:
        on_radius(delta)
    with exact_arithmetic(x.device):
        return _greedy_cover(x, budget, delta)


def usual_clusters(budget: int, n: int) -> int:
    """Clusters by which purity is judged among n points where nobody says how many."""
    return min(max(budget, 10), n)


def pure_radius(features: Tensor, clusters: int, *, purity: float = 0.95, seed: int = 0) -> float:
    """The largest δ at which a fraction `purity` of the balls hold points of one k-means cluster only (section 3.3).

    A ball stays pure up to the distance to the nearest point of another cluster; δ is a quantile of these
    distances, over 5,000 random points at most. Infinity if there is only one cluster.

    Args:
        features: [n, d], used as they are.
        clusters: of k-means, 1 … n.
        purity: 0 … 1.
        seed: decides the starting points and the sample.
    """
    if not 0 <= purity <= 1:
        raise UslError(f"purity={purity}: expected a fraction from 0 to 1")
    labels, _ = shared_kmeans(features, clusters, seed=seed)
    sample = permutation(len(features), seed, "pure radius")[:RADIUS_SAMPLE].to(features.device)
    reach = torch.empty(len(sample), device=features.device)
    with exact_arithmetic(features.device):
        for rows in chunks(len(sample), 32 * len(features), features.device):
            distances = squared_distances(features[sample[rows]], features)
            distances.masked_fill_(labels[sample[rows], None] == labels, torch.inf)
            reach[rows] = distances.amin(1)
    impure = min(len(sample) - 1, int((1 - purity) * len(sample) + 1e-9))
    return float(reach.kthvalue(impure + 1).values.sqrt())


def _greedy_cover(x: Tensor, budget: int, delta: float) -> Tensor:
    # On the unit sphere d² = 2 - 2 cos. A pair at distance δ itself is outside, whatever its rounding.
    least = 1 - delta**2 / 2 + 1e-6
    everything = torch.ones(len(x), dtype=torch.bool, device=x.device)
    degrees_of_all = _degrees(x, x, least)
    degrees, uncovered, free = degrees_of_all.clone(), everything.clone(), everything.clone()
    chosen = torch.empty(budget, dtype=torch.int64, device=x.device)
    for i in counted(budget, "ProbCover", "choice"):
        if not uncovered.any():
            degrees, uncovered = degrees_of_all.clone(), everything.clone()
        pick = degrees.masked_fill(~free, torch.iinfo(degrees.dtype).min).argmax()
        covered = uncovered & (x @ x[pick] > least)
        covered[pick] = uncovered[pick]
        degrees -= _degrees(x, x[covered], least)
        uncovered &= ~covered
        free[pick] = False
        chosen[i] = pick
    return chosen


def _degrees(x: Tensor, targets: Tensor, least: float) -> Tensor:
    """int64 [n]: how many of the targets [m, d] have a cosine above `least` with each row of x."""
    out = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for rows in shown(chunks(len(x), 5 * max(1, len(targets)), x.device), "ProbCover: balls", len(x)):
        out[rows] = (x[rows] @ targets.T > least).sum(1)
    return out


class ProbCover(Selector):
    """ProbCover as one stage: the features of the images, then `select_probcover`.

    Args:
        delta: radius of a ball; default: the largest at which `purity` of the balls are pure.
        purity: fraction of the balls that hold points of one cluster only.
        clusters: of k-means, by which purity is judged; default: 10, or the budget if that is more.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    revision: int = 2

    up_to_images = ("clusters",)
    ranges: ClassVar[Ranges] = {"delta": above(0), "purity": within(0, 1), "clusters": whole(1)}

    def __init__(
        self,
        delta: float | None = None,
        purity: float = 0.95,
        clusters: int | None = None,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self._select = partial(select_probcover, delta=delta, purity=purity, clusters=clusters)
        self._clusters, self._judged, self._radius = clusters, delta is None, delta or math.inf

    def settled(self, n: int) -> dict[str, Any]:
        """The radius, null if one ball holds all, and the clusters by which it was chosen if nobody gave one."""
        told: dict[str, Any] = {"delta": self._radius if math.isfinite(self._radius) else None}
        if self._judged:
            told["clusters"] = self._clusters or usual_clusters(self.budget, n)
        return told

    def _note(self, radius: float) -> None:
        self._radius = radius

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_probcover`."""
        return self._select(features, self.budget, seed=seed, on_radius=self._note)
