"""Cross-validation of learners over a few labels: what to choose of each, and how good their mean is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from usl_lightning.evaluation.calibration import Calibrated, calibrate, expected_error, reliability, softening
from usl_lightning.evaluation.estimate import Estimate, estimate_accuracy, unseen_mass
from usl_lightning.evaluation.folds import known_class, of_held_out, stratified_folds, training_sets
from usl_lightning.evaluation.learning_curve import fit_learning_curve
from usl_lightning.vectors.votes import Learner, log_mean

MORE = 40
"""Labels that the look ahead adds."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What the first of two learners may have in their mean."""

DOUBT = 4.0
"""Nats by which held-out labels have to speak for one learner alone; half of the mean each needs no reason."""

MIXED = 0.7
"""Usual temperature of the mean of calibrated probabilities: several that agree may be surer than each of them."""


@dataclass(frozen=True)
class Judgement:
    """What the labels say of the classifier that was learned from them.

    Attributes:
        estimate: of its accuracy; None: they are too few to tell.
        with_more: the accuracy with `MORE` labels more; None: there is no telling, or there are no such images.
        settings, temperatures: those chosen, of each learner.
        weights: of each in their mean.
        reliability: of each bin three numbers, of held-out labels: how many, classified rightly, sum of confidences.
        calibration_error, uncalibrated_error: of the same, with and without temperatures; None if none counts.
    """

    estimate: Estimate | None
    with_more: float | None
    settings: list[int]
    temperatures: list[float]
    reliability: list[list[float]]
    calibration_error: float | None
    uncalibrated_error: float | None
    weights: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Judgement":
        """That which `asdict` made plain."""
        estimate = stored["estimate"]
        return cls(**{**stored, "estimate": None if estimate is None else Estimate(**estimate)})

    def metrics(self) -> dict[str, Any]:
        """For `result.json`."""
        told: dict[str, Any] = {}
        if self.estimate is not None:
            told = {
                "estimated_accuracy": self.estimate.accuracy,
                "estimated_interval": [self.estimate.low, self.estimate.high],
                "estimated_from": self.estimate.labels,
            }
        return told if self.with_more is None else {**told, f"estimated_with_{MORE}_more": self.with_more}


class Trial:
    """Cross-validation of learners over a few labels.

    Args:
        learners: those to be tried.
        labels: int64 [m].
        folds: int64 [R, m].
        usual: temperatures, of each learner, before any label is seen.

    Attributes:
        found: what is chosen of each learner.
        mixed: what is chosen of their mean.
        weights: [learners], of each in it.
        softer: a last temperature, for images of classes that have no label; 1 where each has one.
    """

    def __init__(self, learners: Sequence[Learner], labels: Tensor, folds: Tensor, usual: Sequence[float]) -> None:
        self.learners, self.labels, self.folds = learners, labels, folds
        train = training_sets(folds)
        place = folds[:, None]
        self.counts = known_class(labels, train).view(len(folds), -1, len(labels)).gather(1, place)[:, 0]
        scores = [of_held_out(learner.held_out(train), folds) for learner in learners]
        self.found = [
            calibrate(each, labels, folds, self.counts, usual=t) for each, t in zip(scores, usual, strict=True)
        ]
        self.mixed, self.weights = self._mix()
        told = self.mixed.probabilities
        warmth = self.found[0].temperature / usual[0] if len(learners) == 1 else self.mixed.temperature / MIXED
        self.softer = softening(told, labels, self.counts, unseen_mass(labels, told.shape[-1]), warmth)

    def _mix(self) -> tuple[Calibrated, Tensor]:
        """The mean of the learners, by weights and a temperature that the same labels choose."""
        if len(self.found) == 1:
            return self.found[0]._replace(temperature=1.0), torch.ones(1)
        told = torch.stack([each.probabilities for each in self.found])
        weights = torch.tensor([[share, 1 - share] for share in SHARES])
        both = torch.stack([log_mean(told, each) for each in weights])
        doubts = [DOUBT * (2 * share - 1) ** 2 for share in SHARES]
        mixed = calibrate(both, self.labels, self.folds, self.counts, usual=MIXED, doubts=doubts)
        return mixed, weights[mixed.setting]

    def held_out(self) -> Tensor:
        """What is said of each label while it is held out, the mean over repeats: [m, c], rows of sum 1."""
        mean: Tensor = self.mixed.probabilities.mean(0)
        return mean / mean.sum(1, keepdim=True)

    def judge(self, confidences: Tensor, share: Tensor, labels: int) -> Judgement:
        """What the labels say.

        Args:
            confidences: [n], largest probabilities of the classifier learned from all labels, of the others' images,
                before they are made `softer`: the estimate counts unseen classes itself.
            share: [m], see `nearest_share`.
            labels: how many there are, those that were not drawn too.
        """
        told = self.mixed.probabilities
        estimate = estimate_accuracy(told, self.labels, self.counts, confidences, share)
        raw = log_mean(torch.stack([each.uncalibrated for each in self.found]), self.weights).exp()
        bins = reliability(told, self.labels, self.counts)
        few = labels > len(self.labels) or len(confidences) < MORE  # the labels are a part, or there are no more images
        with_more = None if estimate is None or few else self._with_more(estimate)
        return Judgement(
            estimate,
            with_more,
            settings=[each.setting for each in self.found],
            temperatures=[*(each.temperature for each in self.found), self.mixed.temperature * self.softer],
            reliability=bins.tolist(),
            calibration_error=expected_error(bins),
            uncalibrated_error=expected_error(reliability(raw, self.labels, self.counts)),
            weights=self.weights.tolist(),
        )

    def _with_more(self, estimate: Estimate) -> float | None:
        """The accuracy with `MORE` labels more, by the errors of what is learned from half and more of them."""
        sizes, errors = [], []
        for parts in (2, 4, self.folds.max().item() + 1):
            folds = stratified_folds(self.labels, int(parts), 6, seed=1)
            train = training_sets(folds)
            told = [
                of_held_out(learner.held_out(train, [found.setting]), folds)[0] / found.temperature
                for learner, found in zip(self.learners, self.found, strict=True)
            ]
            right = log_mean(torch.stack([each.softmax(2) for each in told]), self.weights).argmax(2) == self.labels
            sizes.append(float(train.double().sum(1).mean()))
            errors.append(1 - float(right.double().mean()))
        curve = fit_learning_curve(sizes, errors, labels=len(self.labels))
        return None if curve is None else curve.with_more(estimate.accuracy, len(self.labels), MORE)
