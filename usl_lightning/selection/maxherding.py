"""MaxHerding: greedy maximisation of a smooth coverage (Bae, Noh, Sutherland, ECCV 2024)."""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import counted, shown
from usl_lightning.base.ranges import Ranges, above
from usl_lightning.compute.device import chunks
from usl_lightning.data.batch import ImageSpec
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, unit_rows
from usl_lightning.vectors.memory import once

CANDIDATES = 64
"""Points whose gain is brought up to date at once."""


def select_maxherding(features: Tensor, budget: int, *, seed: int = 0, sigma: float = 1.0) -> Tensor:
    """Greedily the point that adds most to the generalised coverage (1/n) Σ_x max_{s chosen} k(x, s) (Algorithm 1).

    The kernel is exp(-|x - s|²/σ²). A point's gain can only shrink as others are chosen, so old gains are
    bounds, and few have to be computed again for each choice (Minoux, 1978); the choice is the same.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n. A larger budget begins with the smaller one's choice.
        seed: has no effect; nothing is drawn.
        sigma: σ > 0, the kernel's width; 1 in the paper, which finds it matters little.

    Returns:
        int64 [budget], distinct, in order of choice; ties to the lower index, as far as rounding lets a tie
        be seen.

    Raises:
        UslError: budget or sigma out of range, features not finite or with rows of zeros.

    Time: n² kernel values for the first choice (the paper takes 35,000 random points of a larger set).
    """
    check_budget(budget, len(features))
    if not sigma > 0:
        raise UslError(f"sigma={sigma}: expected a kernel width above 0")
    x = unit_rows(features)
    chosen: list[int] = []
    covered = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    with exact_arithmetic(x.device):
        everything = torch.arange(len(x), device=x.device)
        bounds = once(lambda: _gains(x, everything, covered, sigma), x, "MaxHerding", sigma).clone()
        for _ in counted(budget, "MaxHerding", "choice"):
            pick = _best_gain(x, bounds, covered, sigma) if chosen else int(bounds.argmax())
            chosen.append(pick)
            covered = torch.maximum(covered, _kernel(x, x[pick][None], sigma)[:, 0])
            bounds[pick] = -1  # below every gain: not again
    return torch.tensor(chosen, device=x.device)


def _kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """exp(-|x - y|²/σ²) of unit rows x [a, d], y [b, d], as [a, b]."""
    return (x @ y.T).sub_(1).clamp_(max=0).mul_(2 / sigma**2).exp_()


def _gains(x: Tensor, candidates: Tensor, covered: Tensor, sigma: float) -> Tensor:
    """What each candidate would add to Σ_x max k, given the present maxima `covered` [n]; float64 [b]."""
    out = torch.empty(len(candidates), dtype=torch.float64, device=x.device)
    for rows in shown(chunks(len(candidates), 16 * len(x), x.device), "MaxHerding: gains", len(candidates)):
        kernel = _kernel(x[candidates[rows]], x, sigma)
        out[rows] = kernel.sub_(covered).clamp_(min=0).sum(1, dtype=torch.float64)
    return out


def _best_gain(x: Tensor, bounds: Tensor, covered: Tensor, sigma: float) -> int:
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
        bounds[candidates] = _gains(x, candidates, covered, sigma)
        stale[candidates] = False


class MaxHerding(Selector):
    """MaxHerding as one stage: the features of the images, then `select_maxherding`.

    Args:
        image: of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint whose encoder gives the features.
        sigma: the kernel's width.
        source: where else the features come from, and what to keep: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"sigma": above(0)}

    seeded = False

    # `**source` is resolved by the command line to the parameters of `Selector`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        sigma: float = 1.0,
        **source: Any,
    ) -> None:
        super().__init__(image=image, budget=budget, init_from=init_from, **source)
        self._select = partial(select_maxherding, sigma=sigma)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_maxherding`."""
        return self._select(features, self.budget, seed=seed)
