"""Entropy sampling (Settles, 2009, eq. 3): the images whose class is least certain, over all classes."""

import torch
from torch import Tensor

from usl_lightning.selection.next_selector import Known, NextSelector


def entropy(probabilities: Tensor) -> Tensor:
    """-Σ_c p log p of each row of probabilities [n, c], with 0·log 0 = 0; float64 [n]."""
    return torch.special.entr(probabilities.double()).sum(1)


class Entropy(NextSelector):
    """The images of the highest entropy of the classifier's probabilities."""

    seeded = False

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """The highest `entropy`."""
        return known.highest(entropy(known.probabilities), count)
