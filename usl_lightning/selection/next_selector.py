"""What selectors share that pick the next images to label, by what a classifier makes of all of them so far."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.modules import ImageData
from usl_lightning.features.votes import load_votes, looks_at
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.votes import Votes


@dataclass(frozen=True)
class Known:
    """What is known after a round.

    Attributes:
        features: unit rows, float [n, d], of all images.
        classify: rows of `inputs` [b, d] -> probabilities [b, c], by the classifier of the round before.
        kept: int64 [j], the images of the rounds before, answered or not; they are not picked again.
        rows: int64 [m], those that have an answer.
        labels: int64 [m], the answers.
        raw: the features [n, d] in their own lengths, if the classifier is a network's head, which looks at those.
    """

    features: Tensor
    classify: Callable[[Tensor], Tensor]
    kept: Tensor
    rows: Tensor
    labels: Tensor
    raw: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What the classifier looks at, float [n, d]."""
        return self.features if self.raw is None else self.raw

    @cached_property
    def probabilities(self) -> Tensor:
        """Of the classes, of all images: float [n, c]."""
        return self.classify(self.inputs)

    @cached_property
    def open(self) -> Tensor:
        """int64 [n - j], the images that may be picked, in their order."""
        free = torch.ones(len(self.features), dtype=torch.bool, device=self.features.device)
        free[self.kept] = False
        return free.nonzero()[:, 0]

    def highest(self, scores: Tensor, count: int) -> Tensor:
        """The `count` images of the highest of these scores [n] that may be picked; ties to the lower index."""
        order = torch.argsort(scores[self.open], descending=True, stable=True)
        return self.open[order[:count]]


class NextOptions(SelectorOptions, total=False):
    """Parameters that methods hand on to `NextSelector`."""

    classifier_from: str | None


class NextSelector(Selector):
    """Base of the selectors of a second round and later: the kept images stand, the others are picked beside them.

    Args:
        classifier_from: checkpoint of the classifier that was trained from it; must be given. A Probe, Propagate or
            Blend looks at the features that are given here; a network that was trained in steps (FixMatch, …) gives
            the features itself, those of its moving average.
        options: the budget, the features, and the label index of the rounds before, `keep_from`, which must be given:
            see `Selector`.
    """

    needs = ("classifier_from", "keep_from")
    _votes: Votes

    def __init__(self, classifier_from: str | None = None, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(**options)
        self.classifier_from = classifier_from

    @abstractmethod
    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """`count` distinct images of `known.open`, 1 or more; int64, in order of choice."""

    def kept(self, data: ImageData) -> LabelIndex | None:
        """See `Selector`; and the classifier is loaded, so that a wrong one is told before features are computed.

        Raises:
            UslError: see `Selector`; no labels or no classifier is given, or features beside those of a network.
        """
        if self.classifier_from is None or self.keep_from is None:
            raise self._first()
        self._votes = load_votes(self.classifier_from)
        if not self._votes.unit and self.has_features and not self._is_itself():
            raise UslError(
                f"model.classifier_from: {self.classifier_from} is a network, which has features of its own; leave "
                "model.init_from, model.backbone and model.features out"
            )
        return super().kept(data)

    def _is_itself(self) -> bool:
        """Whether the features asked for are the classifier's own."""
        return self.backbone is None and self.init_from == self.classifier_from and self.weights == "ema"

    def load_network(self) -> None:
        """Load the network that gives the features: a classifier that is one gives them itself.

        Raises:
            UslError: see `FeatureMethod`; or the classifier was learned on the features of another network.
        """
        if self.classifier_from is not None and not self._votes.unit:
            self.init_from, self.weights = self.classifier_from, "ema"
        super().load_network()
        if self.classifier_from is not None and self._votes.unit and not looks_at(self.classifier_from, self.encoder):
            raise UslError(
                f"model.classifier_from: {self.classifier_from} was learned on features of another network; give the "
                "selector the model.init_from or model.backbone that the classifier had"
            )

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """Nothing can be chosen without labels.

        Raises:
            UslError: always.
        """
        raise self._first()

    def choose_beside(self, features: Tensor, kept: LabelIndex, seed: int) -> Tensor:
        """The kept images, then those of `pick`.

        Raises:
            UslError: the classifier is of other features, or of fewer classes.
        """
        x, raw = unit_rows(features).float(), None if self._votes.unit else features.float()
        votes = self._votes.to(x.device)
        if votes.inputs != x.shape[1]:
            raise UslError(
                f"model.classifier_from: {self.classifier_from} looks at {votes.inputs} features, these are "
                f"{x.shape[1]}; give the selector the same model.init_from, model.backbone or model.features"
            )
        images, labels = (
            torch.tensor(kept.indices),
            torch.tensor([-1 if each is None else each for each in kept.labels]),
        )
        images, labels = images.to(x.device), labels.to(x.device)
        answered = labels >= 0
        known = Known(x, lambda inputs: votes(inputs).softmax(1), images, images[answered], labels[answered], raw)
        count = self.budget - len(kept)
        if count == 0:
            return known.kept
        with torch.no_grad():
            return torch.cat([known.kept, self.pick(known, count, seed)])

    def _first(self) -> UslError:
        name = type(self).__name__
        return UslError(
            f"{name} looks at what is labelled already and at a classifier of it; give model.keep_from (--keep LABELS) "
            "and model.classifier_from, or choose the first images with another selector"
        )
