"""RDSS: representative and diverse samples by minimising α-MMD (Shao, Kang et al., NeurIPS 2024)."""

from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import counted, shown
from usl_lightning.base.ranges import Ranges, above, within
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, unit_rows
from usl_lightning.vectors.memory import once

BANDWIDTH_SAMPLE = 1_000
"""Random points whose distances the bandwidth is taken from, where there are more."""


def select_rdss(
    features: Tensor, budget: int, *, seed: int = 0, alpha: float | None = None, gamma: float | None = None
) -> Tensor:
    """Generalised kernel herding without replacement, a Frank-Wolfe step a choice (Algorithm 1).

    The next point is the argmin of S(x) - α·μ(x) over those not chosen yet, where μ is the mean kernel of x to
    all points (representative) and S that to the chosen ones (diverse). The kernel is exp(-γ|x - y|²).

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: m, how many, from 1 to n.
        seed: decides the sample for `median_gamma`, of more than 1,000 points; has no effect else.
        alpha: 0 … 1, less for more diversity; None: 1 - 1/√m (section 7.1).
        gamma: γ > 0; None: `median_gamma`, the paper's section 6 (the published code has 0.5 throughout).

    Returns:
        int64 [budget], distinct, in order of choice; ties to the lower index. The first maximises μ, also at
        α = 0, where every point is as good.

    Raises:
        UslError: a parameter out of range, features not finite or with rows of zeros.

    Time: n² kernel values for μ, n for each choice. Sums are float64.
    """
    m = budget
    check_budget(m, len(features))
    alpha = 1 - m**-0.5 if alpha is None else alpha
    if not 0 <= alpha <= 1:
        raise UslError(f"alpha={alpha}: expected a number from 0 to 1")
    if gamma is not None and not gamma > 0:
        raise UslError(f"gamma={gamma}: expected a number above 0")
    x = unit_rows(features)
    gamma = median_gamma(x, seed=seed) if gamma is None else gamma
    chosen = torch.empty(m, dtype=torch.int64, device=x.device)
    with exact_arithmetic(x.device):
        mu = once(lambda: _mean_kernel(x, gamma), x, "RDSS", gamma)
        similarity, free = torch.zeros_like(mu), torch.ones_like(mu, dtype=torch.bool)
        chosen[0] = mu.argmax()
        for p in counted(m - 1, "RDSS", "choice"):
            last = chosen[p]
            free[last] = False
            similarity += (_kernel(x, x[last][None], gamma)[:, 0] - similarity) / (p + 1)
            chosen[p + 1] = (similarity - alpha * mu).masked_fill_(~free, torch.inf).argmin()
    return chosen


def median_gamma(features: Tensor, *, seed: int = 0) -> float:
    """1/σ², with the bandwidth σ the median distance between two of the points (Gretton et al., JMLR 2012).

    Args:
        features: [n, d], used as they are; 1,000 random points of more.
        seed: decides which.

    Returns:
        A number above 0; 1.0 if half of the distances are 0.
    """
    sample = features[permutation(len(features), seed, "bandwidth")[:BANDWIDTH_SAMPLE].to(features.device)]
    distances = torch.nn.functional.pdist(sample.double())
    median = float(distances.median().square()) if len(distances) else 0.0
    return 1 / median if median > 0 else 1.0


def _kernel(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """exp(-γ|x - y|²) of unit rows x [a, d], y [b, d], as [a, b]."""
    return (x @ y.T).sub_(1).clamp_(max=0).mul_(2 * gamma).exp_()


def _mean_kernel(x: Tensor, gamma: float) -> Tensor:
    """μ, float64 [n]."""
    mu = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for rows in shown(chunks(len(x), 8 * len(x), x.device), "RDSS: mean similarity", len(x)):
        mu[rows] = _kernel(x[rows], x, gamma).mean(1, dtype=torch.float64)
    return mu


class RDSS(Selector):
    """RDSS as one stage: the features of the images, then `select_rdss`.

    Args:
        alpha: 0 … 1, less for more diversity; default: 1 - 1/√budget.
        gamma: of the kernel exp(-γ|x - y|²); default: 1/(median distance)².
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"alpha": within(0, 1), "gamma": above(0)}

    def __init__(
        self,
        alpha: float | None = None,
        gamma: float | None = None,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self._select = partial(select_rdss, alpha=alpha, gamma=gamma)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_rdss`."""
        return self._select(features, self.budget, seed=seed)
