"""The density of USL, and selection by it alone: the points with the closest neighbours, wherever they are."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.errors import UslError
from usl_lightning.selection.base import Selector
from usl_lightning.selection.geometry import check_budget, unit_rows
from usl_lightning.selection.memo import once
from usl_lightning.selection.neighbors import nearest_neighbors

log = logging.getLogger(__name__)


def select_density(
    features: Tensor, budget: int, *, seed: int = 0, k: int = 400, squared: bool = True, include_self: bool = True
) -> Tensor:
    """The `budget` points of highest utility U of USL (Wang, Lian, Yu, ECCV 2022, eq. 1), without its clusters.

    What USL's density is worth on its own: dense points crowd together, so few classes are covered.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n.
        seed: has no effect; nothing is drawn.
        k, squared, include_self: of the density, as in `select_usl`.

    Returns:
        int64 [budget], densest first; ties to the lower index.

    Raises:
        UslError: budget or k out of range, features not finite or with rows of zeros.
    """
    check_budget(budget, len(features))
    x = unit_rows(features)
    distance = limited_density(x, k, squared=squared, include_self=include_self)
    return torch.argsort(distance, stable=True)[:budget]


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


class Density(Selector):
    """Density alone as one stage: the features of the images, then `select_density`.

    Args:
        image: of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint whose encoder gives the features.
        k, squared, include_self: of the density, see `select_usl`.
        source: where else the features come from, and what to keep: see `Selector`.
    """

    seeded = False

    # `**source` is resolved by the command line to the parameters of `Selector`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        k: int = 400,
        squared: bool = True,
        include_self: bool = True,
        **source: Any,
    ) -> None:
        super().__init__(image=image, budget=budget, init_from=init_from, **source)
        self._k, self._include_self = k, include_self
        self._select = partial(select_density, k=k, squared=squared, include_self=include_self)

    def settled(self, n: int) -> dict[str, Any]:
        """The neighbours in the density."""
        return {"k": limit_k(self._k, n, self._include_self)}

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_density`."""
        return self._select(features, self.budget, seed=seed)
