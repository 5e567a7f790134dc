"""Greedy choices of points that cover the others: by a smooth kernel, or by the largest distance that is left."""

import torch
from torch import Tensor

from usl_lightning.base.progress import counted, shown
from usl_lightning.compute.device import chunks
from usl_lightning.vectors.distances import exact_arithmetic, squared_distances

CANDIDATES = 64
"""Points whose gain is brought up to date at once."""


class Coverage:
    """The generalised coverage Σ_x w(x)·max_{s chosen} exp(-|x - s|²/σ²), and what each point would add to it.

    A point's gain can only shrink as others are chosen, so old gains are bounds, and few have to be computed again for
    each choice (Minoux, 1978); the choice is the same.

    Args:
        x: unit rows [n, d].
        sigma: σ > 0.
        weights: w, [n], 0 or more; None: 1.
        name: of the method, for the bars.
    """

    def __init__(self, x: Tensor, sigma: float, weights: Tensor | None = None, name: str = "coverage") -> None:
        self.x, self.sigma, self.weights, self.name = x, sigma, weights, name
        self.covered = torch.zeros(len(x), dtype=x.dtype, device=x.device)

    def add(self, point: int) -> None:
        """Choose a point."""
        with exact_arithmetic(self.x.device):
            self.covered = torch.maximum(self.covered, kernel(self.x, self.x[point][None], self.sigma)[:, 0])

    def gains(self, candidates: Tensor) -> Tensor:
        """What each of some points would add now; float64 [b]."""
        n, device = len(self.x), self.x.device
        out = torch.empty(len(candidates), dtype=torch.float64, device=device)
        with exact_arithmetic(device):
            for rows in shown(chunks(len(candidates), 16 * n, device), f"{self.name}: gains", len(candidates)):
                more = kernel(self.x[candidates[rows]], self.x, self.sigma).sub_(self.covered).clamp_(min=0)
                if self.weights is not None:
                    more.mul_(self.weights)
                out[rows] = more.sum(1, dtype=torch.float64)
        return out

    def choose(self, count: int, bounds: Tensor) -> Tensor:
        """Greedily the points of highest gain.

        Args:
            count: how many.
            bounds: float64 [n], the gains as they are now; -1 of what must not be chosen. It is changed.

        Returns:
            int64 [count], distinct, in order of choice; ties to the lower index, as far as rounding lets a tie be seen.
        """
        chosen: list[int] = []
        for _ in counted(count, self.name, "choice"):
            pick = self._best(bounds) if chosen else int(bounds.argmax())
            chosen.append(pick)
            self.add(pick)
            bounds[pick] = -1  # below every gain: not again
        return torch.tensor(chosen, dtype=torch.int64, device=self.x.device)

    def _best(self, bounds: Tensor) -> int:
        """The point of highest gain. `bounds` [n], upper bounds of all gains, are lowered to those computed."""
        stale = bounds >= 0
        while True:
            best = int(bounds.argmax())
            if not stale[best]:
                return best
            waiting = torch.where(stale, bounds, -1)
            candidates = waiting.topk(min(CANDIDATES, len(bounds))).indices
            candidates[-1] = best  # which the others may have crowded out when bounds are equal
            candidates = candidates[stale[candidates]]
            bounds[candidates] = self.gains(candidates)
            stale[candidates] = False


def kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """exp(-|x - y|²/σ²) of unit rows x [a, d], y [b, d], as [a, b]."""
    return (x @ y.T).sub_(1).clamp_(max=0).mul_(2 / sigma**2).exp_()


def farthest_first(x: Tensor, first: Tensor, count: int, name: str = "Coreset") -> Tensor:
    """Again and again the point farthest from the first ones and all chosen (Euclidean): greedy k-centre.

    Args:
        x: [n, d].
        first: int64 [j], at least one.
        count: how many to choose, at most n - j.
        name: of the method, for the bar.

    Returns:
        int64 [count], distinct, none of the first, in order of choice; ties to the lower index.
    """
    chosen = torch.empty(count, dtype=torch.int64, device=x.device)
    to_chosen = torch.full((len(x),), torch.inf, device=x.device)
    with exact_arithmetic(x.device):
        _nearer(x, first, to_chosen)
        for p in counted(count, name, "choice"):
            chosen[p] = to_chosen.argmax()
            _nearer(x, chosen[p][None], to_chosen)
    return chosen


def _nearer(x: Tensor, points: Tensor, to_chosen: Tensor) -> None:
    """Bring the squared distances [n] to the nearest chosen up to date with further `points`, which are at -1."""
    for point in points:
        for rows in chunks(len(x), 24 * x.shape[1], x.device):
            distances = squared_distances(x[rows], x[point][None])[:, 0]
            to_chosen[rows] = torch.minimum(to_chosen[rows], distances)
    to_chosen[points] = -1  # not again, even when duplicates leave nothing but zeros
