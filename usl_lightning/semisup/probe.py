"""Logistic regression on features that are learned already: what few labels are best spent on, or near it."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above
from usl_lightning.semisup.few_labels import FewLabels, FewLabelsOptions
from usl_lightning.vectors.logistic import LinearHead, LogisticLearner
from usl_lightning.vectors.votes import Learner


class Probe(FewLabels):
    """Multinomial logistic regression on unit features, its strength chosen by cross-validation over the labels.

    Args:
        strengths: candidates of the inverse of the penalty, scikit-learn's `C`, for features of mean squared length 1.
        folds, repeats: of the cross-validation.
        options: where the features come from, and the cross-validation: see `FewLabels`.
    """

    ranges: ClassVar[Ranges] = {"strengths": above(0)}

    revision: int = 3
    usual = (0.9,)

    def __init__(
        self,
        strengths: list[float] = [3.0, 30.0, 300.0],  # noqa: B006 - never changed
        **options: Unpack[FewLabelsOptions],
    ) -> None:
        super().__init__(**options)
        if not strengths:
            raise UslError("model.strengths: none is given; expected at least one")
        self.strengths = strengths

    def learners(self, features: Tensor, rows: Tensor, labels: Tensor) -> tuple[Learner, ...]:
        """The regression alone."""
        return (LogisticLearner(features, rows, labels, self.image.num_classes, self.strengths),)

    def heads_like(self, states: Sequence[dict[str, Tensor]]) -> Sequence[nn.Module]:
        """One linear layer."""
        return [LinearHead.like(states[0])]
