"""Label propagation (Zhou et al., NIPS 2003) over all images, from features that are learned already."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.semisup.few_labels import FewLabels, FewLabelsOptions
from usl_lightning.vectors.propagation import NeighborHead, PropagationLearner
from usl_lightning.vectors.votes import Learner


class Propagate(FewLabels):
    """The labels spread from image to similar image; a new image takes what its neighbours among them have.

    Args:
        k: neighbours of each image.
        alphas: candidates of how much of an image's value comes from its neighbours.
        folds, repeats: of the cross-validation that calibrates and estimates.
        options: where the features come from, and the cross-validation: see `FewLabels`.
    """

    ranges: ClassVar[Ranges] = {"k": whole(1), "alphas": at_least(0, below=1)}

    revision: int = 4
    usual = (0.7,)

    def __init__(
        self,
        k: int = 10,
        alphas: list[float] = [0.9, 0.99],  # noqa: B006 - never changed
        **options: Unpack[FewLabelsOptions],
    ) -> None:
        super().__init__(**options)
        if not alphas:
            raise UslError("model.alphas: none is given; expected at least one")
        self.k, self.alphas = k, alphas

    def learners(self, features: Tensor, rows: Tensor, labels: Tensor) -> tuple[Learner, ...]:
        """Propagation alone."""
        return (PropagationLearner(features, rows, labels, self.image.num_classes, self.k, self.alphas),)

    def heads_like(self, states: Sequence[dict[str, Tensor]]) -> Sequence[nn.Module]:
        """The images and what they have come to."""
        return [NeighborHead.like(states[0], self.k)]
