"""What more labels would bring: a power law through the errors of smaller training sets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 32
"""Labels below which the smaller training sets say too little of the larger."""

SIZES = 3
"""Different sizes of training sets that a curve needs."""

STEEPEST = 1.0
"""Exponent above which errors fall faster than those of learners do: noise is taken for a trend."""


@dataclass(frozen=True)
class LearningCurve:
    """error(n) = scale · n^-exponent (Hestness et al., 2017; Mahmood et al., CVPR 2022).

    Attributes:
        scale, exponent: above 0.
    """

    scale: float
    exponent: float

    def error(self, labels: float) -> float:
        """Of a classifier from so many labels, 0 … 1."""
        return min(1.0, self.scale * labels**-self.exponent)

    def with_more(self, accuracy: float, labels: int, more: int) -> float:
        """The accuracy with `more` labels, of a classifier that has this accuracy with `labels`.

        The error falls by the factor that the curve has between the two; where it stands is not the curve's to say.
        """
        return 1 - (1 - accuracy) * (1 + more / labels) ** -self.exponent


def fit_learning_curve(sizes: Sequence[float], errors: Sequence[float], *, labels: int) -> LearningCurve | None:
    """The curve by least squares of the logarithms; None where there is no telling.

    Args:
        sizes: of the training sets, above 0.
        errors: of what was learned from them, 0 … 1; the mean of several sets of a size.
        labels: that all sets were drawn from.

    Returns:
        None of fewer than `FEWEST` labels or `SIZES` different sizes, if there is an error of 0, or if errors do not
        fall, or fall faster than those of learners do.
    """
    if len(sizes) != len(errors):
        raise ValueError(f"{len(sizes)} sizes and {len(errors)} errors; expected as many")
    if labels < FEWEST or len(set(sizes)) < SIZES or min(sizes) <= 0 or min(errors) <= 0:
        return None
    slope, level = np.polyfit(np.log(sizes), np.log(errors), 1, w=np.sqrt(sizes))
    if not math.isfinite(slope) or not 0.02 < -slope <= STEEPEST:
        return None
    return LearningCurve(float(np.exp(level)), float(-slope))
