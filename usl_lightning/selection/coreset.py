"""Coreset selection by greedy k-centre (Sener, Savarese, ICLR 2018, Algorithm 1)."""

import torch
from torch import Tensor

from usl_lightning.data.keys import permutation
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.coverage import farthest_first
from usl_lightning.vectors.distances import check_budget, unit_rows


def select_coreset(features: Tensor, budget: int, *, seed: int = 0, first: Tensor | None = None) -> Tensor:
    """From the first points, again and again the point farthest from all chosen ones (Euclidean).

    The largest distance from any point to the chosen ones is at most twice the least possible. The paper starts from
    labelled points; where there are none the first is random.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n, with the first ones. A larger budget begins with the smaller one's choice.
        seed: decides the first point, if none is given.
        first: int64 [j], distinct, those that are labelled.

    Returns:
        int64 [budget], distinct, the first ones, then in order of choice; ties to the lower index.

    Raises:
        UslError: budget out of range, features not finite or with rows of zeros.

    Time: budget·n distances.
    """
    check_budget(budget, len(features))
    x = unit_rows(features)
    start = permutation(len(x), seed, "coreset")[:1] if first is None or not len(first) else first
    start = start.to(x.device)
    return torch.cat([start, farthest_first(x, start, budget - len(start))])


class Coreset(Selector):
    """Coreset as one stage: the features of the images, then `select_coreset`, from those that are kept."""

    revision: int = 2

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_coreset`."""
        return select_coreset(features, self.budget, seed=seed)

    def choose_beside(self, features: Tensor, kept: LabelIndex, seed: int) -> Tensor:
        """The same, starting from the kept images."""
        return select_coreset(features, self.budget, seed=seed, first=torch.tensor(kept.indices))
