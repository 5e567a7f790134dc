"""The density of USL: how near the nearest neighbours of each point are."""

import logging

from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.vectors.memo import once
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
