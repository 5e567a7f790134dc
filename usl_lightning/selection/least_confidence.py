"""Least confidence sampling (Lewis, Gale, SIGIR 1994): the images whose most probable class is the least so."""

from torch import Tensor

from usl_lightning.selection.next_selector import Known, NextSelector


class LeastConfidence(NextSelector):
    """The images of the lowest largest probability."""

    seeded = False

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """The lowest max p."""
        return known.highest(-known.probabilities.amax(1), count)
