"""The density of USL, and selection by it alone: the points with the closest neighbours, wherever they are."""

import logging
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.density import limit_k, limited_density
from usl_lightning.vectors.distances import check_budget, unit_rows

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


class Density(Selector):
    """Density alone as one stage: the features of the images, then `select_density`.

    Args:
        k, squared, include_self: of the density, see `select_usl`.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"k": whole(1)}

    seeded = False

    def __init__(
        self,
        k: int = 400,
        squared: bool = True,
        include_self: bool = True,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self._k, self._include_self = k, include_self
        self._select = partial(select_density, k=k, squared=squared, include_self=include_self)

    def settled(self, n: int) -> dict[str, Any]:
        """The neighbours in the density."""
        return {"k": limit_k(self._k, n, self._include_self)}

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_density`."""
        return self._select(features, self.budget, seed=seed)
