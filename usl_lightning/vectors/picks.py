"""From scores to distinct picks."""

import logging

import torch
from torch import Tensor

from usl_lightning.vectors.distances import squared_distances

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
