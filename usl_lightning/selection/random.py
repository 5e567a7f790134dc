"""Random selection: what every other method has to beat."""

import torch
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import permutation
from usl_lightning.data.modules import ImageData
from usl_lightning.selection.base import Selector
from usl_lightning.selection.geometry import check_budget


def select_random(features_or_n: Tensor | int, budget: int, *, seed: int = 0) -> Tensor:
    """`budget` distinct indices drawn uniformly, a function of (n, seed) alone.

    Args:
        features_or_n: features [n, d], of which only the number is read, or n itself.
        budget: how many, from 1 to n. A larger budget begins with the smaller one's choice.
        seed: decides the order.

    Returns:
        int64 [budget], on the features' device (CPU for a number).

    Raises:
        UslError: budget out of range.
    """
    if isinstance(features_or_n, Tensor):
        n, device = len(features_or_n), features_or_n.device
    else:
        n, device = features_or_n, torch.device("cpu")
    check_budget(budget, n)
    return permutation(n, seed, "random selection")[:budget].to(device)


class Random(Selector):
    """Random selection as one stage; computes no features.

    Args:
        image: of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        keep_from: label index (short: --keep) whose images come first, with their labels.
    """

    needs_network = False

    def __init__(self, image: ImageSpec, budget: int, keep_from: str | None = None) -> None:
        super().__init__(image=image, budget=budget, keep_from=keep_from)

    def evidence(self, data: ImageData) -> Tensor:
        """Nothing, [n, 0]."""
        return torch.empty(len(data.train_source), 0)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_random`."""
        return select_random(features, self.budget, seed=seed)
