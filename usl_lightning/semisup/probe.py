"""Logistic regression on features that are learned already: what few labels are best spent on, or near it."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above
from usl_lightning.data.batch import ImageSpec
from usl_lightning.semisup.few_labels import FewLabels
from usl_lightning.vectors.logistic import LinearHead, LogisticLearner
from usl_lightning.vectors.votes import Learner


class Probe(FewLabels):
    """Multinomial logistic regression on unit features, its strength chosen by cross-validation over the labels.

    Args:
        image: of the images; the command line takes it from the data.
        init_from: checkpoint whose encoder gives the features.
        strengths: candidates of the inverse of the penalty, scikit-learn's `C`, for features of mean squared length 1.
        folds, repeats: of the cross-validation.
        source: where else the features come from: see `FeatureMethod`.
    """

    ranges: ClassVar[Ranges] = {"strengths": above(0)}

    revision: int = 2
    usual = (0.9,)

    # `**source` is resolved by the command line to the parameters of `FewLabels`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        init_from: str | None = None,
        strengths: list[float] = [3.0, 30.0, 300.0],  # noqa: B006 - never changed
        **source: Any,
    ) -> None:
        super().__init__(image=image, init_from=init_from, **source)
        if not strengths:
            raise UslError("model.strengths: none is given; expected at least one")
        self.strengths = strengths

    def learners(self, features: Tensor, rows: Tensor, labels: Tensor) -> tuple[Learner, ...]:
        """The regression alone."""
        return (LogisticLearner(features, rows, labels, self.image.num_classes, self.strengths),)

    def heads_like(self, states: Sequence[dict[str, Tensor]]) -> Sequence[nn.Module]:
        """One linear layer."""
        return [LinearHead.like(states[0])]
