"""Balanced labels from class scores by Sinkhorn-Knopp (Cuturi, 2013; SeLa: Asano et al., 2020, Eq. 6 to 8)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from usl_lightning.errors import UslError

CHUNK_ENTRIES = 2**18
"""Entries worked on at once on a CPU, where they should stay in its cache: 2 MB in float64."""

CHUNK_ENTRIES_CUDA = 2**25
"""The same on a GPU, where few large kernels are wanted: 256 MB in float64."""

DRIFT = 20.0
"""How far, in nats, the column scaling may move before it is absorbed into the stored rows."""

MAX_ITERATIONS = 20_000
"""Where the iteration ends in any case. The predictions of a network need some tens to hundreds."""

Scores = Callable[[Tensor], Tensor]
"""Logits [m, K] of the features [m, d] of some rows."""


def sinkhorn_labels(logits: Tensor, *, power: float, tolerance: float, distributed: bool = False) -> Tensor:
    """One label a row such that all K labels are used about equally often: N/K times each.

    The rows softmax(power·logits) are scaled to Q = diag(c)·softmax(power·logits)·diag(r) whose columns sum to 1/K
    and whose rows sum to 1/N; the label is the row's largest entry of Q. The larger `power`, the closer Q is to the
    best balanced assignment (SeLa, Eq. 7 and 8), and the more iterations it takes.

    The rows are stored in float32; scaling vectors and sums are float64, because the tolerance over many rows
    is below the resolution of float32. What float32 cannot hold (at power 25 that is nearly everything) is not lost:
    as soon as the scaling moves far, it is absorbed into the exponents and the rows are computed again.

    Memory beyond the logits: 4·N·K bytes for the rows, 16·N for the scaling, and a few chunks of 2 MB on a CPU or
    256 MB on a GPU. At N = 1,281,167 and K = 3,000 that is 14.4 GiB, and as much again for the logits in float32
    (tests/benchmarks/sinkhorn.py measures it on fewer rows). Split over P processes, each holds a P-th of both.
    `balanced_labels` does without the logits.

    Args:
        logits: class scores [n, K], any float dtype; unchanged.
        power: λ above 0; 25 in the paper, 10 for small sets.
        tolerance: above 0; the iteration ends when Σ|c/c_new − 1| over all rows is below it. 0.1 in the
            published code, 0.01 for small sets.
        distributed: the rows are this process's share, and all processes call this together. N is then the sum of
            all shares, and the K column sums are reduced over the processes.

    Returns:
        Labels int64 [n].

    Raises:
        UslError: not a matrix of finite numbers; power or tolerance not above 0.
    """
    if logits.dim() != 2 or 0 in logits.shape or not logits.is_floating_point():
        raise UslError(f"logits {list(logits.shape)} {logits.dtype}: expected class scores [n, K] of a float type")
    return balanced_labels(
        logits, _themselves, logits.shape[1], power=power, tolerance=tolerance, distributed=distributed
    )


@torch.no_grad()
def balanced_labels(
    features: Tensor,
    scores: Scores,
    classes: int,
    *,
    power: float,
    tolerance: float,
    distributed: bool = False,
) -> Tensor:
    """`sinkhorn_labels` of logits that are computed from features, a chunk of rows at a time, and never held at once.

    Args:
        features: [n, d], what `scores` takes rows of.
        scores: the head; called for every chunk four times or more.
        classes: K, the columns of what it returns.
        power, tolerance, distributed: as for `sinkhorn_labels`.

    Returns:
        Labels int64 [n].

    Raises:
        UslError: scores that are not finite; power or tolerance not above 0.
    """
    if power <= 0 or tolerance <= 0:
        raise UslError(f"power {power}, tolerance {tolerance} of the self-labels: expected both above 0")
    size = max(1, (CHUNK_ENTRIES_CUDA if features.is_cuda else CHUNK_ENTRIES) // classes)
    plan = _Plan(torch.split(features, size), scores, classes, power, distributed)
    for _ in range(MAX_ITERATIONS):
        error = plan.iterate()
        if not math.isfinite(error):
            raise UslError(
                "the class scores to be balanced are not all finite numbers; if they diverged, lower model.optimizer.lr"
            )
        if error < tolerance:
            break
    return plan.labels()


def _themselves(logits: Tensor) -> Tensor:
    return logits


class _Plan:
    """The scaled rows Q = exp(power·logits + log_c + log_r)·c·r, and one Sinkhorn iteration on them.

    log_c [n] and log_r [K] have absorbed what the scaling had come to when `rows` were last computed; c and r are
    what has come since. Which part is where changes nothing but the rounding.
    """

    rows: list[Tensor]
    c: list[Tensor]
    r: Tensor

    def __init__(
        self, features: Sequence[Tensor], scores: Scores, classes: int, power: float, distributed: bool
    ) -> None:
        self.features, self.scores, self.classes, self.power = features, scores, classes, power
        self.distributed = distributed and dist.is_initialized()
        device = features[0].device
        count = torch.tensor(float(sum(map(len, features))), dtype=torch.float64, device=device)
        self.count = self._total(count)
        # The rows softmax(power·logits), and their column sums in the log domain, where none underflows.
        self.log_c: list[Tensor] = []
        sums = torch.full((classes,), -torch.inf, dtype=torch.float64, device=device)
        for part in features:
            x = self._exponents(part)
            self.log_c.append(-x.logsumexp(1))
            sums = torch.logaddexp(sums, (x + self.log_c[-1][:, None]).logsumexp(0))
        self.log_r = (self.count / classes).log() - self._log_total(sums)
        self._compute_rows()

    def iterate(self) -> float:
        """c from r, and r from the new c, in one pass over the rows; returns Σ|c/c_new − 1|."""
        sums, error = torch.zeros_like(self.r), torch.zeros_like(self.count)
        for i, part in enumerate(self.rows):
            wide = part.double()
            c = 1 / (self.count * (wide @ self.r))
            sums += c @ wide
            error += (self.c[i] / c - 1).abs().sum()
            self.c[i] = c
        totals = self._total(torch.cat([sums, error[None]]))
        self.r = 1 / (self.classes * totals[:-1])
        if float(self.r.log().abs().max()) > DRIFT:
            self._absorb()
        return float(totals[-1])

    def labels(self) -> Tensor:
        """The largest entry of each row of Q, int64 [n]; a row's own scaling does not change which it is."""
        scaling = self.log_r + self.r.log()
        return torch.cat([(self._exponents(part) + scaling).argmax(1) for part in self.features])

    def _absorb(self) -> None:
        self.log_r = self.log_r + self.r.log()
        self.log_c = [log_c + (c * self.count).log() for log_c, c in zip(self.log_c, self.c, strict=True)]
        self._compute_rows()

    def _compute_rows(self) -> None:
        self.rows = []  # the old ones go before the new ones come
        for part, log_c in zip(self.features, self.log_c, strict=True):
            self.rows.append((self._exponents(part) + log_c[:, None]).add_(self.log_r).exp_().float())
        self.c = [torch.ones_like(log_c) / self.count for log_c in self.log_c]
        self.r = torch.ones_like(self.log_r)

    def _exponents(self, part: Tensor) -> Tensor:
        return self.scores(part).double() * self.power

    def _total(self, x: Tensor) -> Tensor:
        if self.distributed:
            dist.all_reduce(x)
        return x

    def _log_total(self, x: Tensor) -> Tensor:
        """log Σ exp(x) over the processes."""
        if not self.distributed:
            return x
        top = x.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX)
        return self._total((x - top).exp()).log() + top
