"""BALD: where the members of a committee disagree (Houlsby et al., 2011; Gal, Islam, Ghahramani, ICML 2017)."""

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.data.keys import Key
from usl_lightning.selection.next_selector import Known, NextOptions, NextSelector
from usl_lightning.vectors.logistic import LogisticLearner, fit_logistic


def disagreement(probabilities: Tensor) -> Tensor:
    """H(mean p) - mean H(p), the mutual information of class and member, with 0·log 0 = 0.

    Args:
        probabilities: [B, n, c], of each member.

    Returns:
        float64 [n], 0 or more but for rounding.
    """
    p = probabilities.double()
    return torch.special.entr(p.mean(0)).sum(1) - torch.special.entr(p).sum(2).mean(0)


def committee(known: Known, members: int, strength: float, seed: int) -> Tensor:
    """Probabilities [members, n, c] of logistic regressions, each with other weights of the labels.

    The weights are those of the Bayesian bootstrap (Rubin, 1981), exponential, so that every member knows every class.
    """
    classes = known.probabilities.shape[1]
    learner = LogisticLearner(known.features, known.rows, known.labels, classes, [strength])
    drawn = Key.of(seed, "BALD", slots=torch.arange(members)).uniform(len(known.rows)).to(learner.x)
    weights = -(1 - drawn).clamp_min(1e-7).log() + 1e-6
    weights /= weights.amax(1, keepdim=True)
    penalties = 1 / (strength * weights.sum(1))
    found, biases = fit_logistic(learner.x, known.labels, weights, penalties, num_classes=classes)
    x = (known.features - learner.mean) / learner.scale
    return torch.stack([(x @ w.T + b).softmax(1) for w, b in zip(found, biases, strict=True)])


class BALD(NextSelector):
    """The images on which a committee that knows the same labels disagrees most.

    The papers' members are passes of a network with dropout. Here they are logistic regressions that weigh the labels
    differently, see `committee`.

    Args:
        members: of the committee.
        strength: inverse of the penalty, scikit-learn's `C`, see `Probe`.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    ranges: ClassVar[Ranges] = {"members": whole(2), "strength": above(0)}

    def __init__(self, members: int = 10, strength: float = 30.0, **options: Unpack[NextOptions]) -> None:
        super().__init__(**options)
        self.members, self.strength = members, strength

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """The highest `disagreement`."""
        return known.highest(disagreement(committee(known, self.members, self.strength, seed)), count)
