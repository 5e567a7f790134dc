"""UHerding: cover what is uncertain, at every budget (Bae, Oliveira, Sutherland, ICLR 2025)."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, above
from usl_lightning.selection.next_selector import Known, NextOptions, NextSelector
from usl_lightning.vectors.coverage import Coverage
from usl_lightning.vectors.distances import squared_distances
from usl_lightning.vectors.votes import margins

WIDEST = 1.0
"""Kernel width where no two labelled images differ: MaxHerding's."""


def kernel_width(labelled: Tensor) -> float:
    """The smallest distance above 0 between labelled points [m, d]: finer as they become more (section 4)."""
    distances = squared_distances(labelled, labelled).sqrt()
    apart = distances[distances > 0]
    return float(apart.min()) if len(apart) else WIDEST


class UHerding(NextSelector):
    """Greedily the image that adds most to (1/n) Σ_x U(x)·max_{s labelled or chosen} exp(-|x - s|²/σ²) (Algorithm 1).

    U = 1 - (p₁ - p₂) of the classifier, whose probabilities are calibrated already (the paper fits a temperature).

    Args:
        uncertain: with U; without, it is 1 everywhere: MaxHerding from the labelled.
        sigma: σ; None: the smallest distance between two labelled images.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    ranges: ClassVar[Ranges] = {"sigma": above(0)}

    seeded = False

    def __init__(self, uncertain: bool = True, sigma: float | None = None, **options: Unpack[NextOptions]) -> None:
        super().__init__(**options)
        self.uncertain, self.sigma = uncertain, sigma

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """See the class."""
        x = known.features
        weights = 1 - margins(known.probabilities) if self.uncertain else None
        coverage = Coverage(x, self.sigma or kernel_width(x[known.rows]), weights, name="UHerding")
        for image in known.kept.tolist():
            coverage.add(image)
        bounds = coverage.gains(torch.arange(len(x), device=x.device))
        bounds[known.kept] = -1
        return coverage.choose(count, bounds)
