"""Coreset selection by greedy k-centre (Sener, Savarese, ICLR 2018, Algorithm 1)."""

import torch
from torch import Tensor

from usl_lightning.base.progress import counted
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, squared_distances, unit_rows


def select_coreset(features: Tensor, budget: int, *, seed: int = 0) -> Tensor:
    """From a random first point, again and again the point farthest from all chosen ones (Euclidean).

    The largest distance from any point to the chosen ones is at most twice the least possible. The paper
    starts from labelled points; there are none here, hence the random one. Images that are kept (`--keep`) take
    the places of the picks nearest to them, as with every selector; the choice does not start from them.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n. A larger budget begins with the smaller one's choice.
        seed: decides the first point.

    Returns:
        int64 [budget], distinct, in order of choice; ties to the lower index.

    Raises:
        UslError: budget out of range, features not finite or with rows of zeros.

    Time: budget·n distances.
    """
    check_budget(budget, len(features))
    x = unit_rows(features)
    chosen = torch.empty(budget, dtype=torch.int64, device=x.device)
    chosen[0] = permutation(len(x), seed, "coreset")[0]
    to_chosen = torch.full((len(x),), torch.inf, device=x.device)
    with exact_arithmetic(x.device):
        for p in counted(budget - 1, "Coreset", "choice"):
            last = x[chosen[p]][None]
            for rows in chunks(len(x), 24 * x.shape[1], x.device):
                distances = squared_distances(x[rows], last)[:, 0]
                to_chosen[rows] = torch.minimum(to_chosen[rows], distances)
            to_chosen[chosen[p]] = -1  # not again, even when duplicates leave nothing but zeros
            chosen[p + 1] = to_chosen.argmax()
    return chosen


class Coreset(Selector):
    """Coreset as one stage: the features of the images, then `select_coreset`."""

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_coreset`."""
        return select_coreset(features, self.budget, seed=seed)
