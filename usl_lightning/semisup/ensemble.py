"""Ensembles over networks (V-PET: Zhang et al., NeurIPS 2025): they vote, and a new classifier learns what they say."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.semisup.few_labels import FewLabels, FewLabelsOptions
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.logistic import LinearHead, LogisticLearner
from usl_lightning.vectors.propagation import PropagationLearner
from usl_lightning.vectors.ridge import Ridge
from usl_lightning.vectors.votes import Learner

TEMPERATURES = (0.9, 0.7)
"""Of logistic regression and of propagation, as Blend has them before any label is seen."""


def soft_targets(votes: Tensor, rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """What is learned: of each image the share of the votes that each class has; of a labelled one its label.

    Args:
        votes: int64 [v, n], the class that each of v classifiers gives each image.
        rows: int64 [m], the labelled images.
        labels: int64 [m].
        num_classes: c.

    Returns:
        float32 [n, c], rows of sum 1.
    """
    targets = F.one_hot(votes, num_classes).float().mean(0)
    return targets.index_copy(0, rows, F.one_hot(labels, num_classes).float())


class Voter:
    """Logistic regression and label propagation on the features of one network: the mean of both, as Blend begins.

    Nothing of it is chosen by the labels: few of them choose badly, and each choice would have to be held out.

    Args:
        features: unit rows [n, d], of all images.
        rows: int64 [m], those that are labelled.
        labels: int64 [m].
        num_classes: c.
        strength, k, alpha: see `Ensemble`.
    """

    def __init__(
        self, features: Tensor, rows: Tensor, labels: Tensor, num_classes: int, strength: float, k: int, alpha: float
    ) -> None:
        self.learners: tuple[Learner, ...] = (
            LogisticLearner(features, rows, labels, num_classes, [strength]),
            PropagationLearner(features, rows, labels, num_classes, k, [alpha]),
        )

    def votes(self, train: Tensor) -> Iterator[Tensor]:
        """The classes int64 [n] of all images by what is learned from some labels, for each of bool [B, m]."""
        for logits in zip(*(learner.everywhere(train, 0) for learner in self.learners), strict=True):
            calibrated = torch.stack([(x / t).softmax(1) for x, t in zip(logits, TEMPERATURES, strict=True)])
            yield calibrated.mean(0).argmax(1)


class Student:
    """A linear classifier of all images by what the voters say of them: ridge regression.

    Args:
        features: unit rows [n, d], of all images.
        rows: int64 [m], those that are labelled.
        labels: int64 [m].
        num_classes: c.
        voters: those who say.
        penalty: for features of mean 0 and mean squared length 1.
    """

    def __init__(
        self,
        features: Tensor,
        rows: Tensor,
        labels: Tensor,
        num_classes: int,
        voters: Sequence[Voter],
        penalty: float,
    ) -> None:
        self.features, self.rows, self.labels, self.num_classes = features, rows, labels, num_classes
        self.voters, self.mean = voters, features.mean(0)
        length = (features - self.mean).square().sum(1).mean().sqrt()
        self.scale = torch.where(length > 1e-6, length, 1.0)  # equal images say nothing
        self.x = (features - self.mean) / self.scale
        self.ridge = Ridge(self.x, penalty)

    def targets(self, train: Tensor) -> Iterator[Tensor]:
        """What is learned, [n, c], where some labels are known, for each of bool [B, m]."""
        for known, *votes in zip(train, *(voter.votes(train) for voter in self.voters), strict=True):
            yield soft_targets(torch.stack(votes), self.rows[known], self.labels[known], self.num_classes)

    def held_out(self, train: Tensor, settings: Sequence[int] | None = None) -> Tensor:
        """Scores [1, B, m, c] of the labelled rows; the voters, too, know the labels of each of bool [B, m] alone."""
        return torch.stack([scores[self.rows] for scores in self.everywhere(train, 0)])[None]

    def everywhere(self, train: Tensor, setting: int) -> Iterator[Tensor]:
        """Scores [n, c] of all rows, for each of bool [B, m]."""
        return (F.linear(self.features, *self._solved(targets)) for targets in self.targets(train))

    def _solved(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [c, d] and biases [c], of the features as they are."""
        mean = targets.mean(0)
        weight = self.ridge.weights(targets - mean).T / self.scale
        return weight, mean - weight @ self.mean

    def head(self, setting: int) -> LinearHead:
        """What is learned of what all labels say."""
        (targets,) = self.targets(torch.ones(1, len(self.rows), dtype=torch.bool, device=self.rows.device))
        weight, bias = self._solved(targets)
        head = LinearHead(self.x.shape[1], self.num_classes).to(self.x.device)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        return head

    def scores(self, head: nn.Module) -> Tensor:
        """Scores [n, c] of all rows."""
        scored: Tensor = head(self.features)
        return scored


class Ensemble(FewLabels):
    """Classifiers over several networks label all images; a linear one learns the mean of what they say.

    On the features of each network logistic regression and label propagation give every image without a label one
    class; the shares of these votes are what the new classifier learns, on the features of all networks side by side.
    With one network it learns that one's guesses.

    Args:
        strength: of logistic regression, one of those that `Probe` chooses from.
        k: neighbours of each image, see `Propagate`.
        alpha: of label propagation, one of those that `Propagate` chooses from.
        penalty: of the ridge regression that learns the votes, for features of mean squared length 1.
        folds, repeats: of the cross-validation that calibrates and estimates.
        options: where the features come from, and the cross-validation: see `FewLabels`.
    """

    ranges: ClassVar[Ranges] = {"strength": above(0), "k": whole(1), "alpha": at_least(0, below=1), "penalty": above(0)}

    usual = (0.25,)

    def __init__(
        self,
        strength: float = 30.0,
        k: int = 10,
        alpha: float = 0.9,
        penalty: float = 0.1,
        **options: Unpack[FewLabelsOptions],
    ) -> None:
        super().__init__(**options)
        self.strength, self.k, self.alpha, self.penalty = strength, k, alpha, penalty

    def learners(self, features: Tensor, rows: Tensor, labels: Tensor) -> tuple[Learner, ...]:
        """The new one."""
        classes = self.image.num_classes
        voters = [
            Voter(unit_rows(part), rows, labels, classes, self.strength, self.k, self.alpha)
            for part in torch.split(features, self.widths(features.shape[1]), 1)
        ]
        return (Student(features, rows, labels, classes, voters, self.penalty),)

    def widths(self, together: int) -> list[int]:
        """How many of the features are of each network; those of a file count as one network's."""
        return [each.feature_dim for each in self.encoder.apart()] if self.needs_network else [together]

    def heads_like(self, states: Sequence[dict[str, Tensor]]) -> Sequence[nn.Module]:
        """One linear layer."""
        return [LinearHead.like(states[0])]
