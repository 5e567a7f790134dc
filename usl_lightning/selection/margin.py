"""Margin sampling (Scheffer, Decomain, Wrobel, IDA 2001): the images between two classes."""

from torch import Tensor

from usl_lightning.selection.next_selector import Known, NextSelector
from usl_lightning.vectors.votes import margins


class Margin(NextSelector):
    """The images of the smallest difference of the two largest probabilities."""

    seeded = False

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """The smallest `margins`."""
        return known.highest(-margins(known.probabilities), count)
