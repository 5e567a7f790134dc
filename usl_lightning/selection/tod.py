"""TOD: the images whose prediction moved most since the round before (Huang et al., ICCV 2021)."""

from typing import Unpack

import torch
from torch import Tensor

from usl_lightning.data.modules import ImageData
from usl_lightning.features.parts import Place
from usl_lightning.features.published import source_features
from usl_lightning.features.votes import load_votes
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import load_encoder
from usl_lightning.selection.next_selector import Known, NextOptions, NextSelector
from usl_lightning.vectors.votes import Votes


def output_discrepancy(now: Tensor, before: Tensor) -> Tensor:
    """½ Σ_c (p - p')² of two classifiers' probabilities [n, c]; [n]. It bounds a loss from below (theorem 1)."""
    return (now - before).square().sum(1) / 2


class TOD(NextSelector):
    """The images of the largest `output_discrepancy` between the classifiers of the last two rounds.

    In the second round there is one alone. The published code then takes the smallest discrepancy from a network of
    random weights; here it is the smallest from a classifier that knows nothing, all classes alike.

    Args:
        earlier_from: checkpoint of the classifier one round before that of `classifier_from`; None: there is none.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    seeded = False

    def __init__(self, earlier_from: str | None = None, **options: Unpack[NextOptions]) -> None:
        super().__init__(**options)
        self.earlier_from = earlier_from
        self._earlier: Votes | None = None
        self._inputs: Tensor | None = None

    def kept(self, data: ImageData) -> LabelIndex | None:
        """See `NextSelector`."""
        self._earlier = None if self.earlier_from is None else load_votes(self.earlier_from)
        return super().kept(data)

    def evidence(self, data: ImageData) -> Tensor:
        """See `FeatureMethod`; and the features of the network of the round before, if that is one."""
        if self._earlier is not None and not self._earlier.unit and self.earlier_from is not None:
            encoder, place = load_encoder(self.earlier_from, "ema"), Place(data.trainer)
            self._inputs = source_features(encoder, data.train_source, place, workers=data.workers, cache=self.cache)
        return super().evidence(data)

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """See the class."""
        if self._earlier is None:
            nothing = torch.full_like(known.probabilities, 1 / known.probabilities.shape[1])
            return known.highest(-output_discrepancy(known.probabilities, nothing), count)
        inputs = known.features if self._inputs is None else self._inputs.to(known.features)
        before = self._earlier.to(inputs.device)(inputs).softmax(1)
        return known.highest(output_discrepancy(known.probabilities, before), count)
