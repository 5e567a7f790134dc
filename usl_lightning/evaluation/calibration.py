"""Probabilities that can be believed: temperatures (Guo et al., ICML 2017) and settings, told by held-out labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from usl_lightning.evaluation.classification import BINS, calibration_error, confidence_bins

TEMPERATURES = tuple(math.exp(math.log(0.05) + i * math.log(100) / 40) for i in range(41))
"""From 0.05 to 5; each is 12% above the one before."""

SPREAD = 0.5
"""Standard deviation of the logarithm of temperatures about the usual one, before any label is seen."""

LEAST = 1e-3
"""Probability of the truth below which a label is charged no more."""


class Calibrated(NamedTuple):
    """What held-out labels say of a learner.

    Attributes:
        probabilities: [R, m, c], of each row by a learner that has not seen it, with the setting and temperature that
            the labels outside of its fold choose.
        setting, temperature: those that all labels choose.
        uncalibrated: [R, m, c], with that setting and temperature 1.
    """

    probabilities: Tensor
    setting: int
    temperature: float
    uncalibrated: Tensor


def calibrate(
    scores: Tensor,
    labels: Tensor,
    folds: Tensor,
    counts: Tensor,
    *,
    usual: float,
    doubts: Sequence[float] | None = None,
) -> Calibrated:
    """Choose a setting and a temperature by the likelihood of held-out labels; for each fold by the others' labels.

    Args:
        scores: [S, R, m, c], logits of held-out rows in each of S settings.
        labels: int64 [m].
        folds: int64 [R, m].
        counts: bool [R, m], which of them are looked at: a class that was not among those learned from tells nothing.
        usual: the temperature where there are no labels; they outweigh it as they become more.
        doubts: of each setting, before any label is seen: -log of its probability, but for a constant; None: alike.
    """
    losses = torch.stack([_losses(scores / t, labels) for t in TEMPERATURES], 1)  # [S, T, R, m]
    losses = torch.where(counts, losses, 0.0)
    prior = torch.tensor([(math.log(t / usual) / SPREAD) ** 2 / 2 for t in TEMPERATURES]).to(scores)
    of_label = losses.sum(2) / counts.sum(0).clamp_min(1)  # [S, T, m], of each label over its repeats
    whole = of_label.sum(2) + prior
    if doubts is not None:
        whole = whole + torch.tensor(doubts).to(scores)[:, None]
    chosen = torch.empty(scores.shape[1:], dtype=scores.dtype, device=scores.device)
    for repeat, fold_of in enumerate(folds):
        for fold in range(int(folds.max()) + 1):
            held = fold_of == fold
            setting, place = divmod(int((whole - of_label[:, :, held].sum(2)).argmin()), len(TEMPERATURES))
            chosen[repeat, held] = (scores[setting, repeat, held] / TEMPERATURES[place]).softmax(1)
    setting, place = divmod(int(whole.argmin()), len(TEMPERATURES))
    return Calibrated(chosen, setting, TEMPERATURES[place], scores[setting].softmax(2))


def softening(probabilities: Tensor, labels: Tensor, counts: Tensor, unseen: float, warmth: float = 1.0) -> float:
    """A further temperature, at least 1, for what is said of images some of which are of classes without a label.

    What is said of a label whose class no other has is what will be said of those: whatever it is, it is wrong. So
    these labels stand for the images of unseen classes; each is charged -log of what its likeliest class leaves.

    Args:
        probabilities: [R, m, c], calibrated, of held-out rows.
        labels: int64 [m].
        counts: bool [R, m], false where the class of the row was not among those learned from.
        unseen: the share of images whose class has no label, less than 1.
        warmth: the temperature that the probabilities have, by the usual one: what is doubted is both together.
    """
    alone = ~counts.any(0)
    if not unseen or not bool(alone.any()):
        return 1.0
    known = len(labels) - int(alone.sum())
    best, least = 1.0, math.inf
    for t in (1.0, *(t for t in TEMPERATURES if t > 1)):
        told = (probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() / t).softmax(2)
        right = torch.where(counts, _losses(told.log(), labels), 0.0).sum(0) / counts.sum(0).clamp_min(1)
        wrong = -(1 - told[:, alone].amax(2)).clamp_min(LEAST).log()
        loss = float(right.sum() + known * unseen / (1 - unseen) * wrong.mean())
        loss += (math.log(t * warmth) / SPREAD) ** 2 / 2
        if loss < least:
            best, least = t, loss
    return best


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[…, m]: -log of the probability of each label, none above that of `LEAST`."""
    place = labels.expand(logits.shape[:-1])[..., None]
    return -logits.softmax(-1).gather(-1, place)[..., 0].clamp_min(LEAST).log()


def reliability(probabilities: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """float64 [M, 3]: of each bin of confidence its rows, those classified rightly, and the sum of their confidences.

    Args:
        probabilities: [R, m, c] of held-out rows.
        labels: int64 [m].
        counts: bool [R, m], which of them are looked at.
    """
    confidence, predicted = (part[counts] for part in probabilities.double().max(-1))
    right = (predicted == labels.expand(counts.shape)[counts]).double()
    bins = torch.zeros(BINS, 3, dtype=torch.double, device=labels.device)
    values = torch.stack([torch.ones_like(confidence), right, confidence], 1)
    return bins.index_add_(0, confidence_bins(confidence), values)


def expected_error(bins: Tensor) -> float | None:
    """`calibration_error` of bins; None if nothing is in them."""
    return calibration_error(bins) if bool(bins[:, 0].any()) else None
