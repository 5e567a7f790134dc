"""Consistency-based semi-supervised active learning (Gao et al., ECCV 2020): where views of an image disagree."""

from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor

from usl_lightning.selection.next_selector import Known
from usl_lightning.selection.view_selector import ViewOptions, ViewSelector


def inconsistency(views: Iterator[Tensor]) -> Tensor:
    """Σ_c Var(p_c) over the views of an image (section 3.2), the variance of all of them, not of a sample.

    Args:
        views: probabilities [n, c] of each, one or more.

    Returns:
        float64 [n], 0 or more.
    """
    mean = squares = torch.zeros(())
    for number, p in enumerate(views, 1):  # Welford's way: small variances survive
        p = p.double()
        before = p - mean.to(p)
        mean = mean.to(p) + before / number
        squares = squares.to(p) + before * (p - mean)
    return squares.sum(1) / number


class CBSSAL(ViewSelector):
    """The images of the largest `inconsistency` between views of random augmentation.

    Args:
        views: of each image, about 50 in the paper.
        options: the view, the budget, what is kept, the classifier and the features: see `ViewSelector`.
    """

    def __init__(self, views: int = 50, **options: Unpack[ViewOptions]) -> None:
        super().__init__(views=views, **options)

    def score(self, views: Iterator[Tensor]) -> Tensor:
        """`inconsistency`."""
        return inconsistency(views)

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """The highest scores."""
        return known.highest(self.scores.to(known.features.device), count)
