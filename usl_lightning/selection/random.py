"""Random selection: what every other method has to beat."""

import torch
from torch import Tensor

from usl_lightning.data.keys import permutation
from usl_lightning.data.modules import ImageData
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.distances import check_budget


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
    """Random selection as one stage. Features may be given; they are for the report of the choice alone."""

    needs = ()

    @property
    def needs_network(self) -> bool:
        """False unless a network is given whose features are to be in the report."""
        return self.has_features and self.features is None

    def evidence(self, data: ImageData) -> Tensor:
        """Features [n, d] for the report, or nothing, [n, 0]."""
        return super().evidence(data) if self.has_features else torch.empty(len(data.train_source), 0)

    def points(self, evidence: Tensor) -> Tensor:
        """Nothing, [n, 0]: kept images take the places of the first picks."""
        return evidence[:, :0]

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_random`."""
        return select_random(features, self.budget, seed=seed)
