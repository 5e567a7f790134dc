"""BADGE: diverse and uncertain at once, by k-means++ on gradients (Ash et al., ICLR 2020)."""

import torch
from torch import Tensor

from usl_lightning.data.keys import Key
from usl_lightning.selection.next_selector import Known, NextSelector


def badge(features: Tensor, probabilities: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """k-means++ seeding on the gradients of the last layer, g = (p - onehot(ŷ)) ⊗ h (Algorithm 1).

    The first is the longest, each further one is drawn in proportion to the squared distance to the nearest chosen.
    No gradient is built: ⟨g, g'⟩ = ⟨a, a'⟩·⟨h, h'⟩ with a = p - onehot(ŷ).

    Args:
        features: h, [n, d].
        probabilities: p, [n, c].
        count: how many, from 1 to n.
        seed: of the draws.

    Returns:
        int64 [count], distinct, in order of choice; where all that is left is chosen already but for its number, the
        lowest.
    """
    h, a = features.double(), probabilities.double()
    a = a - torch.nn.functional.one_hot(a.argmax(1), a.shape[1])
    lengths = a.square().sum(1) * h.square().sum(1)
    draws = Key.of(seed, "BADGE", slots=torch.arange(count)).uniform()[:, 0].double().tolist()
    chosen = [int(lengths.argmax())]
    free = torch.ones(len(h), dtype=torch.bool, device=h.device)
    nearest = torch.full_like(lengths, torch.inf)
    for draw in draws[1:]:
        last = chosen[-1]
        free[last] = False
        distances = lengths + lengths[last] - 2 * (a @ a[last]) * (h @ h[last])
        nearest = torch.minimum(nearest, distances.clamp_min(0)) * free
        chosen.append(_drawn(nearest, draw, free))
    return torch.tensor(chosen, device=h.device)


def _drawn(weights: Tensor, draw: float, free: Tensor) -> int:
    """Where the running sum of weights [n] passes `draw`, 0 to 1, of all; the first free place if all are 0."""
    sums = weights.cumsum(0)
    if not float(sums[-1]) > 0:
        return int(free.int().argmax())
    place = int(torch.searchsorted(sums, draw * sums[-1], right=True))
    return min(place, int((weights > 0).nonzero()[-1]))


class BADGE(NextSelector):
    """The images whose gradients, were their most probable class right, are large and far apart."""

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """See `badge`."""
        return known.open[badge(known.inputs[known.open], known.probabilities[known.open], count, seed=seed)]
