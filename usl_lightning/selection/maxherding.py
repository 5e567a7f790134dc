"""MaxHerding: greedy maximisation of a smooth coverage (Bae, Noh, Sutherland, ECCV 2024)."""

from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.coverage import Coverage
from usl_lightning.vectors.distances import check_budget, unit_rows
from usl_lightning.vectors.memory import once


def select_maxherding(features: Tensor, budget: int, *, seed: int = 0, sigma: float = 1.0) -> Tensor:
    """Greedily the point that adds most to the generalised coverage (1/n) Σ_x max_{s chosen} k(x, s) (Algorithm 1).

    The kernel is exp(-|x - s|²/σ²). See `Coverage`.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n. A larger budget begins with the smaller one's choice.
        seed: has no effect; nothing is drawn.
        sigma: σ > 0, the kernel's width; 1 in the paper, which finds it matters little.

    Returns:
        int64 [budget], distinct, in order of choice; ties to the lower index, as far as rounding lets a tie
        be seen.

    Raises:
        UslError: budget or sigma out of range, features not finite or with rows of zeros.

    Time: n² kernel values for the first choice (the paper takes 35,000 random points of a larger set).
    """
    check_budget(budget, len(features))
    if not sigma > 0:
        raise UslError(f"sigma={sigma}: expected a kernel width above 0")
    x = unit_rows(features)
    coverage = Coverage(x, sigma, name="MaxHerding")
    everything = torch.arange(len(x), device=x.device)
    bounds = once(lambda: coverage.gains(everything), x, "MaxHerding", sigma).clone()
    return coverage.choose(budget, bounds)


class MaxHerding(Selector):
    """MaxHerding as one stage: the features of the images, then `select_maxherding`.

    Args:
        sigma: the kernel's width.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"sigma": above(0)}

    seeded = False

    def __init__(self, sigma: float = 1.0, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(**options)
        self._select = partial(select_maxherding, sigma=sigma)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_maxherding`."""
        return self._select(features, self.budget, seed=seed)
