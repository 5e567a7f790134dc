"""What few answers say of all images with features, while a person still answers: guesses at once, a judgement soon.

Both are those of the classifier `Probe` on the features of a selection's overview, in milliseconds and in seconds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usl_lightning.evaluation.folds import stratified_folds
from usl_lightning.evaluation.trial import MORE, Trial
from usl_lightning.vectors.distances import squared_distances
from usl_lightning.vectors.logistic import LogisticLearner

STRENGTHS = (3.0, 30.0, 300.0)
"""Candidates of the inverse of the penalty; those of `Probe`."""

USUAL = 1, 0.9
"""Place in `STRENGTHS`, and temperature, before labels have said which."""

FOLDS, REPEATS = 5, 2
"""Of the judgement: fewer than `Probe` has, as it is made again and again."""

MOST = 500
"""Labels that a judgement is made of, the last ones."""


class Guesser:
    """Learns classes from the answers to some images, and guesses those of all.

    Args:
        features: float [n, d] of all images that guesses are wanted of.
        sample: int64 [s], rows that stand for all images of the data set, evenly drawn; empty: all rows do.

    Attributes:
        setting, temperature: those that the last judgement chose.
    """

    def __init__(self, features: NDArray[np.floating], sample: NDArray[np.int64]) -> None:
        self.features = torch.from_numpy(np.asarray(features, dtype=np.float32))
        self.sample = torch.from_numpy(sample)
        self.setting, self.temperature = USUAL

    def guess(self, rows: Sequence[int], labels: Sequence[int], num_classes: int) -> NDArray[np.float32]:
        """Probabilities [n, c] by what these rows are labelled.

        Args:
            rows: [m], each once.
            labels: [m], of two classes or more.
            num_classes: c; a class without a label has probability 0.
        """
        learner = self._learner(rows, labels, num_classes)
        logits = learner.scores(learner.head(self.setting))
        return (logits / self.temperature).softmax(1).numpy()

    def judge(
        self, rows: Sequence[int], labels: Sequence[int], num_classes: int, chosen: Sequence[bool] | None = None
    ) -> tuple[dict[str, float] | None, NDArray[np.float64], NDArray[np.float64]]:
        """How good guesses of the images without a label are, and how likely each label is by the others.

        Strength and temperature of the guesses are from then on those that this chose.

        Args:
            rows, labels, num_classes: see `guess`.
            chosen: [m], which of them stand for others in the estimate, see `LabelIndex.added`; None: all.

        Returns:
            `accuracy`, `low`, `high` and `labels` of the estimate, None if these are too few to tell; with them, where
            there is telling, the accuracy `with_more` that so many `more` would bring. Then [m] the likelihoods of
            the labels, and [m] of what else is the likeliest; 1 and 0 where that was not looked at.
        """
        judged = torch.tensor(labels[-MOST:])
        standing = torch.ones(len(judged), dtype=torch.bool) if chosen is None else torch.tensor(chosen[-MOST:])
        learner = self._learner(rows[-MOST:], labels[-MOST:], num_classes)
        trial = Trial([learner], judged, stratified_folds(judged, FOLDS, REPEATS), USUAL[1:])
        (found,) = trial.found
        logits = learner.scores(learner.head(found.setting)) / found.temperature
        judgement = trial.judge(*self._others(logits, torch.tensor(rows[-MOST:]), standing), len(rows))
        self.setting, self.temperature = found.setting, found.temperature
        held_out = trial.mixed.probabilities.double().mean(0)  # [m, c]
        likely, rather = np.ones(len(rows)), np.zeros(len(rows))
        likely[-MOST:] = held_out.gather(1, judged[:, None])[:, 0].numpy()
        rather[-MOST:] = held_out.scatter(1, judged[:, None], 0.0).amax(1).numpy()
        if judgement.estimate is None:
            return None, likely, rather
        more = {} if judgement.with_more is None else {"more": MORE, "with_more": judgement.with_more}
        return {**vars(judgement.estimate), **more}, likely, rather

    def _learner(self, rows: Sequence[int], labels: Sequence[int], num_classes: int) -> LogisticLearner:
        return LogisticLearner(self.features, torch.tensor(rows), torch.tensor(labels), num_classes, STRENGTHS)

    def _others(self, logits: Tensor, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Confidences of the sample, and the share of it that is nearest to each of the labelled images chosen."""
        unlabelled = torch.ones(len(self.features), dtype=torch.bool)
        unlabelled[rows] = False
        among = self.sample[unlabelled[self.sample]] if len(self.sample) else unlabelled.nonzero()[:, 0]
        share = torch.zeros(len(rows), dtype=torch.float64)
        if chosen.any():
            nearest = squared_distances(self.features[among], self.features[rows[chosen]]).argmin(1)
            share[chosen] = torch.bincount(nearest, minlength=int(chosen.sum())).double() / max(1, len(among))
        return logits[among].softmax(1).amax(1), share
