"""Consistency-based semi-supervised active learning (Gao et al., ECCV 2020): where views of an image disagree."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from usl_lightning.data.batch import ImageSpec
from usl_lightning.selection.next_selector import Known
from usl_lightning.selection.view_selector import ViewSelector


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
        image: of the images; the command line takes it from the data.
        budget: number of images, with those that are kept.
        view: of an image; None: `Weak`, the weak view of stage 3.
        init_from: checkpoint whose encoder gives the features.
        views: of each image, about 50 in the paper.
        source: what is kept, the classifier, where else the features come from: see `NextSelector`.
    """

    # `**source` is resolved by the command line to the parameters of `NextSelector`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        view: nn.Module | None = None,
        init_from: str | None = None,
        views: int = 50,
        **source: Any,
    ) -> None:
        super().__init__(image=image, budget=budget, view=view, init_from=init_from, views=views, **source)

    def score(self, views: Iterator[Tensor]) -> Tensor:
        """`inconsistency`."""
        return inconsistency(views)

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """The highest scores."""
        return known.highest(self.scores.to(known.features.device), count)
