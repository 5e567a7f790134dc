"""The density of USL: how near the nearest neighbours of each point are; and from scores to distinct picks."""

import logging

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.vectors.distances import squared_distances
from usl_lightning.vectors.memory import once
from usl_lightning.vectors.neighbors import nearest_neighbors

log = logging.getLogger(__name__)

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


def _density_distance(features: Tensor, k: int, squared: bool, include_self: bool) -> Tensor:
    found = nearest_neighbors(features, k, include_self=include_self)
    log.info("density: %d nearest neighbours of %d points, recall %.3f", k, len(features), found.measured_recall)
    distances = found.squared_distances.double()
    return (distances if squared else distances.sqrt()).mean(1)


def limited_density(features: Tensor, k: int, *, squared: bool = True, include_self: bool = True) -> Tensor:
    """`density_distance` by at most as many neighbours as `limit_k` allows, which the log tells."""
    limited = limit_k(k, len(features), include_self)
    if limited != k:
        log.info("density: k = %d instead of %d, at most a tenth of the %d points", limited, k, len(features))
    return density_distance(features, limited, squared=squared, include_self=include_self)


def limit_k(k: int, n: int, include_self: bool) -> int:
    """`k` neighbours, or fewer in a small set of n points; the rule is `select_usl`'s."""
    if k < 1:
        raise UslError(f"k={k} neighbours: expected at least 1")
    return min(k, max(n // 10, 2 if include_self and n > 1 else 1))


log = logging.getLogger(__name__)


def best_of_each(scores: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Per cluster the index of its highest score; ties to the lower index.

    Args:
        scores: [n], finite.
        labels: int64 [n], 0 … clusters - 1, each of which must occur.

    Returns:
        int64 [clusters].
    """
    n = len(scores)
    best = scores.new_full((clusters,), -torch.inf).scatter_reduce_(0, labels, scores, "amax")
    index = torch.arange(n, device=scores.device)
    index = torch.where(scores == best[labels], index, n)
    return index.new_full((clusters,), n).scatter_reduce_(0, labels, index, "amin")


def fill_to_budget(picks: Tensor, scores: Tensor, budget: int) -> Tensor:
    """The first `budget` of the distinct `picks`, then the others with the best of `scores` [n] (ties: lower index)."""
    missing = budget - len(picks)
    if missing <= 0:
        return picks[:budget]
    log.info("selection: %d clusters for %d images; the other %d are the best remaining", len(picks), budget, missing)
    remaining = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    remaining[picks] = False
    order = torch.argsort(scores, descending=True, stable=True)
    return torch.cat([picks, order[remaining[order]][:missing]])


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
