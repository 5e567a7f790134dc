"""ActiveFT: centres that are optimised to be distributed as the features, then the nearest images (CVPR 2023)."""

import math
from functools import partial
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import counted
from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, unit_rows


def activeft_loss(features: Tensor, centres: Tensor, *, temperature: float, balance: float = 1.0) -> Tensor:
    """The loss of Xie, Lu, Yan, Yang, Tomizuka, Zhan, as in the published code.

    With c the centre most similar to a feature f, and the similarity s(a, b) = a·b/T, the loss of f is
    -log[exp s(f, c) / (exp s(f, c) + balance·Σ_k exp s(c, k))]: near to its centre (the distributions match),
    and the centres apart (diversity; in that sum the gradient flows to c, the k are held). The paper's text has the
    mean of -s(f, c), plus the mean over the centres of the log of their sum, without c itself.

    Args:
        features: [n, d] of length 1.
        centres: [m, d] of length 1.
        temperature: T > 0.
        balance: weight of the diversity, > 0.

    Returns:
        The mean over the features, [].
    """
    nearest = (features @ centres.T).argmax(1)
    # One-hot products, not indexing: their gradients are sums in a fixed order on a GPU too.
    own = F.one_hot(nearest, len(centres)).to(centres.dtype)
    attraction = (features * (own @ centres)).sum(1) / temperature
    repulsion = own @ (centres @ centres.detach().T / temperature).logsumexp(1)
    return F.softplus(repulsion + math.log(balance) - attraction).mean()


def select_activeft(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    temperature: float = 0.07,
    iterations: int = 300,
    lr: float = 1e-3,
    balance: float = 1.0,
) -> Tensor:
    """Optimise `budget` centres by `activeft_loss`, then take for each the most similar image not taken yet.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n; also the number of centres.
        seed: decides the images that the centres start from.
        temperature: T > 0.
        iterations: steps of Adam on all features, 0 or more.
        lr: its learning rate, > 0.
        balance: weight of the diversity, > 0.

    Returns:
        int64 [budget], distinct, in the order of the centres; ties to the lower index.

    Raises:
        UslError: a parameter out of range, features not finite or with rows of zeros.

    Time: iterations·n·budget products and as many for the gradient. Memory: in chunks of 64 MB (512 MB on a GPU).
    """
    check_budget(budget, len(features))
    for name, value in (("temperature", temperature), ("lr", lr), ("balance", balance)):
        if not 0 < value < math.inf:
            raise UslError(f"{name}={value}: expected a number above 0")
    if iterations < 0:
        raise UslError(f"iterations={iterations} of ActiveFT: expected 0 or more")
    x = unit_rows(features)
    start = x[permutation(len(x), seed, "activeft")[:budget].to(x.device)]
    with exact_arithmetic(x.device):
        centres = _optimise(x, start, temperature, iterations, lr, balance)
        return _nearest_distinct(x, centres)


@torch.enable_grad()
def _optimise(x: Tensor, start: Tensor, temperature: float, iterations: int, lr: float, balance: float) -> Tensor:
    """The centres after training, [m, d] of length 1. The gradient of the mean is summed over chunks of features."""
    free = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=lr)
    for _ in counted(iterations, "ActiveFT", "step"):
        optimizer.zero_grad()
        for rows in chunks(len(x), 32 * len(start) + 16 * x.shape[1], x.device):
            centres = F.normalize(free, dim=1)
            part = activeft_loss(x[rows], centres, temperature=temperature, balance=balance)
            (part * (len(x[rows]) / len(x))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return F.normalize(free.detach(), dim=1)


def _nearest_distinct(x: Tensor, centres: Tensor) -> Tensor:
    """int64 [m]: for each centre in turn the most similar row of x that no earlier one has."""
    chosen = torch.empty(len(centres), dtype=torch.int64, device=x.device)
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for number, centre in enumerate(centres):
        chosen[number] = (x @ centre).masked_fill_(~free, -torch.inf).argmax()
        free[chosen[number]] = False
    return chosen


class ActiveFT(Selector):
    """ActiveFT as one stage: the features of the images, then `select_activeft`.

    Args:
        temperature: of the similarities.
        iterations: optimisation steps.
        lr: learning rate of Adam.
        balance: weight of the diversity.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"temperature": above(0), "iterations": whole(0), "lr": above(0), "balance": above(0)}

    def __init__(
        self,
        temperature: float = 0.07,
        iterations: int = 300,
        lr: float = 1e-3,
        balance: float = 1.0,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self._select = partial(select_activeft, temperature=temperature, iterations=iterations, lr=lr, balance=balance)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_activeft`."""
        return self._select(features, self.budget, seed=seed)
