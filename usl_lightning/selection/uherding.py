"""UHerding: cover what is uncertain, at every budget (Bae, Oliveira, Sutherland, ICLR 2025)."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, above
from usl_lightning.data.batch import ImageSpec
from usl_lightning.selection.next_selector import Known, NextSelector
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
        image: of the images; the command line takes it from the data.
        budget: number of images, with those that are kept.
        init_from: checkpoint whose encoder gives the features.
        uncertain: with U; without, it is 1 everywhere: MaxHerding from the labelled.
        sigma: σ; None: the smallest distance between two labelled images.
        source: what is kept, the classifier, where else the features come from: see `NextSelector`.
    """

    ranges: ClassVar[Ranges] = {"sigma": above(0)}

    seeded = False

    # `**source` is resolved by the command line to the parameters of `NextSelector`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        uncertain: bool = True,
        sigma: float | None = None,
        **source: Any,
    ) -> None:
        super().__init__(image=image, budget=budget, init_from=init_from, **source)
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
