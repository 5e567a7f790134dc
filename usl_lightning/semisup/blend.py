"""Logistic regression and label propagation: their mean, until the labels are enough to tell which is better."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.semisup.few_labels import FewLabels, FewLabelsOptions
from usl_lightning.vectors.logistic import LinearHead, LogisticLearner
from usl_lightning.vectors.propagation import NeighborHead, PropagationLearner
from usl_lightning.vectors.votes import Learner


class Blend(FewLabels):
    """A mean of the calibrated probabilities of logistic regression and of label propagation.

    Which of them is better changes with features and budget. Few labels do not tell, and both count the same; held-out
    labels move the weights by quarters, up to one of the two alone, as they become more: see `Trial`.

    Args:
        strengths: see `Probe`.
        k, alphas: see `Propagate`.
        folds, repeats: of the cross-validation.
        options: where the features come from, and the cross-validation: see `FewLabels`.
    """

    ranges: ClassVar[Ranges] = {"strengths": above(0), "k": whole(1), "alphas": at_least(0, below=1)}

    revision: int = 5
    usual = (0.9, 0.7)

    def __init__(
        self,
        strengths: list[float] = [3.0, 30.0, 300.0],  # noqa: B006 - never changed
        k: int = 10,
        alphas: list[float] = [0.9, 0.99],  # noqa: B006 - never changed
        **options: Unpack[FewLabelsOptions],
    ) -> None:
        super().__init__(**options)
        for name, given in (("strengths", strengths), ("alphas", alphas)):
            if not given:
                raise UslError(f"model.{name}: none is given; expected at least one")
        self.strengths, self.k, self.alphas = strengths, k, alphas

    def learners(self, features: Tensor, rows: Tensor, labels: Tensor) -> tuple[Learner, ...]:
        """Both."""
        classes = self.image.num_classes
        return (
            LogisticLearner(features, rows, labels, classes, self.strengths),
            PropagationLearner(features, rows, labels, classes, self.k, self.alphas),
        )

    def heads_like(self, states: Sequence[dict[str, Tensor]]) -> Sequence[nn.Module]:
        """A linear layer, and the images with what they have come to."""
        return [LinearHead.like(states[0]), NeighborHead.like(states[1], self.k)]
