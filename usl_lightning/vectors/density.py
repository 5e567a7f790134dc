"""The density of USL: how near the nearest neighbours of each point are; and from scores to distinct picks."""

import logging

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.distributed import Share, gather_uneven
from usl_lightning.vectors.assignment import pair_distances
from usl_lightning.vectors.distances import squared_distances
from usl_lightning.vectors.memory import once
from usl_lightning.vectors.neighbors import knn, nearest_neighbors

log = logging.getLogger(__name__)

MARGIN = 8
"""Neighbours beyond those that are wanted: whose order rounding leaves open."""

SMALLEST = 1e-12
"""Distances are raised to this before they are inverted, so duplicates give large numbers, not infinity."""


def density_distance(features: Tensor, k: int, *, squared: bool = True, include_self: bool = True) -> Tensor:
    """Mean distance from each point to its k nearest neighbours; the utility is its inverse, U = 1/mean.

    Args:
        features: [n, d], as they are (not normalised here).
        k: how many; at most n, or n - 1 without the point itself.
        squared: mean of squared distances (the published code) or of plain ones (the paper's text).
        include_self: whether the point itself, at distance 0, is one of the k.

    Returns:
        float64 [n], ≥ 0.
    """
    include_self = include_self or len(features) == 1
    how = (k, squared, include_self)
    return once(lambda: _density_distance(features, *how), features, "density", *how)


def spread_density(
    features: Tensor, k: int, share: Share, *, squared: bool = True, include_self: bool = True
) -> Tensor:
    """`density_distance` of points that are spread over processes, exact: each looks at the others' shares in turn.

    A process holds its share, one other, and its own neighbours. A few more neighbours than k are looked at in each
    share and measured in float64 in a fixed order, so that the result is the same on any number of processes.

    Args:
        features: [n, d], those of this process.
        k: neighbours among all points.
        share: of all points.
        squared, include_self: as in `density_distance`.

    Returns:
        float64 [n], ≥ 0.
    """
    wanted = k if include_self else k + 1  # the point itself is at distance 0
    nearest = features.new_empty(len(features), 0, dtype=torch.float64)
    for others in share.each(features):
        found = knn(others, min(wanted + MARGIN, len(others)), queries=features)[1]
        rows = torch.arange(len(features), device=features.device).repeat_interleave(found.shape[1])
        distances = pair_distances(features, others, rows, found.flatten()).view_as(found)
        nearest = torch.cat([nearest, distances], 1)
        nearest = nearest.topk(min(wanted, nearest.shape[1]), largest=False, sorted=True).values
    nearest = nearest if include_self else nearest[:, 1:]
    return (nearest if squared else nearest.sqrt()).mean(1)


def _density_distance(features: Tensor, k: int, squared: bool, include_self: bool) -> Tensor:
    found = nearest_neighbors(features, k, include_self=include_self)
    log.info("density: %d nearest neighbours of %d points, recall %.3f", k, len(features), found.measured_recall)
    distances = found.squared_distances.double()
    return (distances if squared else distances.sqrt()).mean(1)


def limited_density(features: Tensor, k: int, *, squared: bool = True, include_self: bool = True) -> Tensor:
    """`density_distance` by at most as many neighbours as `limit_k` allows, which the log tells."""
    limited = limit_k(k, len(features), include_self)
    if limited != k:
        floor = f" and {limited} at least" if limited > len(features) // 10 else ""
        log.info("density: k = %d instead of %d, at most a tenth of the %d points%s", limited, k, len(features), floor)
    return density_distance(features, limited, squared=squared, include_self=include_self)


def limit_k(k: int, n: int, include_self: bool) -> int:
    """`k` neighbours, or fewer in a small set of n points; the rule is `select_usl`'s."""
    if k < 1:
        raise UslError(f"k={k} neighbours: expected at least 1")
    return min(k, max(n // 10, 2 if include_self and n > 1 else 1))


def best_of_each(scores: Tensor, labels: Tensor, clusters: int, share: Share | None = None) -> Tensor:
    """Per cluster the index of its highest score; ties to the lower index.

    Args:
        scores: [n], finite.
        labels: int64 [n], 0 … clusters - 1, each of which must occur (in one of the shares).
        clusters: their number.
        share: of all points, if others are on other processes; the indices are among all.

    Returns:
        int64 [clusters].
    """
    n = len(scores)
    best = scores.new_full((clusters,), -torch.inf).scatter_reduce_(0, labels, scores, "amax")
    index = torch.arange(n, device=scores.device)
    index = torch.where(scores == best[labels], index, n)
    found = index.new_full((clusters,), n).scatter_reduce_(0, labels, index, "amin")
    if share is None:
        return found
    scores_of_all, found_of_all = share.gathered(best), share.gathered(found + share.first)
    highest = scores_of_all == scores_of_all.amax(0)
    return torch.where(highest, found_of_all, share.count).amin(0)


def occupied(labels: Tensor, clusters: int, share: Share) -> tuple[int, Tensor]:
    """How many clusters have points, and the labels [n] in numbers of these alone, in the same order.

    Args:
        labels: int64 [n], 0 … clusters - 1, of this process's points.
        clusters: as many as there may be.
        share: of all points.
    """
    filled = share.total(torch.bincount(labels, minlength=clusters)) > 0
    return int(filled.sum()), (filled.cumsum(0) - 1)[labels]


def fill_to_budget(picks: Tensor, scores: Tensor, budget: int, share: Share | None = None) -> Tensor:
    """The first `budget` of the distinct `picks`, then the others with the best of `scores` [n] (ties: lower index).

    Args:
        picks: int64 [m].
        scores: [n].
        budget: how many.
        share: of all points, if others are on other processes; the picks are among all.
    """
    missing = budget - len(picks)
    if missing <= 0:
        return picks[:budget]
    log.info("selection: %d clusters for %d images; the other %d are the best remaining", len(picks), budget, missing)
    first = 0 if share is None else share.first
    remaining = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    own = picks - first
    remaining[own[(own >= 0) & (own < len(scores))]] = False
    order = torch.argsort(scores, descending=True, stable=True)
    best = order[remaining[order]][:missing]
    if share is not None:
        scores, best = gather_uneven(scores[best]), gather_uneven(best + first)
        best = best[torch.argsort(scores, descending=True, stable=True)][:missing]  # lower indices come first
    return torch.cat([picks, best])


def keep_first(kept: Tensor, picks: Tensor, points: Tensor) -> Tensor:
    """As many images as there are picks: the kept ones, then the picks, of which each kept image displaced one.

    A kept image takes the place of itself if it was picked, or else of the nearest pick that still has its place:
    what is labelled already need not be bought again next to it.

    Args:
        kept: int64 [j], distinct, j ≤ m.
        picks: int64 [m], distinct, in order of choice.
        points: float [n, d], what tells which are near; ties displace the earlier pick.

    Returns:
        int64 [m], distinct.
    """
    stays = ~torch.isin(picks, kept)
    for image in kept[~torch.isin(kept, picks)]:
        distances = squared_distances(points[image][None], points[picks])[0]
        stays[distances.masked_fill(~stays, torch.inf).argmin()] = False
    return torch.cat([kept, picks[stays]])
