"""How good a classifier of a person's own images is, told by their labels alone, with an interval.

What it is sure of, averaged over all images that nobody labelled, is its accuracy as far as its probabilities are
calibrated; what held-out labels show them to be off by is half added, as those labels are few (prediction-powered
inference: Angelopoulos et al., Science 2023; Angelopoulos, Duchi and Zrnic, 2023, with λ = ½). So labels that were not
drawn at random do no harm: images that stand for many, or lie far from each other, are harder or easier to tell than
the rest, and a plain cross-validation takes them for it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = 0.9
"""Of the intervals."""

FEWEST = 10
"""Labels below which nothing can be told; only those count whose class has another label."""

POWER = 0.5
"""λ: how much of what held-out labels are off by is added."""

WIDER = 1.15
"""By how much the interval is wider than that of as many images drawn at random and classified once."""


@dataclass(frozen=True)
class Estimate:
    """The accuracy on images that nobody labelled, fractions of 1.

    Attributes:
        accuracy: about.
        low, high: a 90% interval.
        labels: that it is told by.
    """

    accuracy: float
    low: float
    high: float
    labels: int


def estimate_accuracy(
    probabilities: Tensor, labels: Tensor, counts: Tensor, confidences: Tensor, share: Tensor | None = None
) -> Estimate | None:
    """Estimate the accuracy of a classifier on the images that have no label.

    Args:
        probabilities: [R, m, c], calibrated, of each labelled image by a classifier that has not seen it, R times.
        labels: int64 [m].
        counts: bool [R, m], false where the class of the image was not among those learned from.
        confidences: [n], largest probabilities of the classifier itself, of the images without a label.
        share: [m], for how large a share of all images each labelled one stands; None: for equal ones.

    Returns:
        None if the labels are too few to tell.
    """
    looked_at = counts.any(0)
    if int(looked_at.sum()) < FEWEST or len(confidences) == 0:
        return None
    confidence, predicted = probabilities.double().max(-1)
    off = torch.where(counts, (predicted == labels).double() - confidence, 0.0).sum(0) / counts.sum(0).clamp_min(1)
    weights = looked_at.double() * (1 if share is None else share.double())
    told = confidences.double().mean() + POWER * (off * weights).sum() / weights.sum().clamp_min(1e-12)
    seen = float((told * (1 - unseen_share(labels, probabilities.shape[-1]) / 2)).clamp(0, 1))
    images = len(labels) / WIDER**2
    # The mean of the distribution that the interval is of: nobody is told 100% by a few labels.
    return Estimate((seen * images + 0.5) / (images + 1), *accuracy_interval(seen, images), len(labels))


def unseen_share(labels: Tensor, num_classes: int) -> float:
    """Good and Turing's estimate of how many images are of a class without a label: that of classes with just one.

    Args:
        labels: int64 [m].
        num_classes: c, those that are known by name; 0 if each has a label.
    """
    numbers = torch.bincount(labels, minlength=num_classes)
    return float((numbers == 1).sum()) / len(labels) if bool((numbers == 0).any()) else 0.0


def unseen_mass(labels: Tensor, num_classes: int) -> float:
    """How many images are of a class without a label, less than 1: the geometric mean of two views.

    Of `unseen_share`, which supposes labels drawn at random and is told by the few that are alone in their class; and
    of the share of classes without a label, which supposes classes alike in number. Each is far off where its
    supposition fails, and says 0 only where there is no reason for more.

    Args:
        labels: int64 [m].
        num_classes: c, those that are known by name.
    """
    missing = int((torch.bincount(labels, minlength=num_classes) == 0).sum())
    return math.sqrt(unseen_share(labels, num_classes) * missing / num_classes)


def accuracy_interval(accuracy: float, images: float) -> tuple[float, float]:
    """Jeffreys' interval of a share that was seen on so many images (Brown, Cai and DasGupta, 2001, §4.3).

    Args:
        accuracy: the share seen, 0 … 1.
        images: above 0, not necessarily a whole number.
    """
    from scipy.special import betaincinv

    right, wrong = accuracy * images + 0.5, (1 - accuracy) * images + 0.5
    low, high = (float(betaincinv(right, wrong, q)) for q in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return min(low, accuracy), max(high, accuracy)


def nearest_share(features: Tensor, rows: Tensor, chosen: Tensor | None = None) -> Tensor:
    """[m]: the share of all points whose nearest labelled one each is.

    Of labels that were added because a guess was right, none says how often guesses are: those have no share, and what
    is near to them is that of the nearest one that was chosen.

    Args:
        features: unit rows [n, d].
        rows: int64 [m], the labelled ones.
        chosen: bool [m], those that have a share; None: all.
    """
    if chosen is not None and not bool(chosen.all()):
        share = torch.zeros(len(rows), dtype=torch.float64, device=features.device)
        if bool(chosen.any()):
            share[chosen] = nearest_share(features, rows[chosen])
        return share
    nearest = torch.cat([(part @ features[rows].T).argmax(1) for part in torch.split(features, 65_536)])
    return torch.bincount(nearest, minlength=len(rows)).double() / len(features)
