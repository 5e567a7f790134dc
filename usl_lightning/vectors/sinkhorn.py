"""Balanced labels from class scores by Sinkhorn-Knopp (Cuturi, 2013; SeLa: Asano et al., 2020, Eq. 6 to 8)."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from usl_lightning.base.errors import UslError

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
    256 MB on a GPU. At N = 1,281,167 and K = 3,000 that is 14.4 GiB (tests/benchmarks/sinkhorn.py measures 4.0 bytes
    an entry), and as much again for the logits in float32, without which `balanced_labels` does. Split over P
    processes, each holds a P-th.

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
    plan = _Plan(features, scores, classes, power, distributed)
    for _ in range(MAX_ITERATIONS):
        error = plan.iterate()
        if not math.isfinite(error):
            raise UslError(
                "the class scores to be balanced are not all finite numbers; if they diverged, lower model.optimizer.lr"
            )
        if error < tolerance:
            break
    return plan.labels()


@torch.no_grad()
def sinkhorn_codes(scores: Tensor, *, epsilon: float, iterations: int, there: Tensor | None = None) -> Tensor:
    """Soft codes of a batch such that all K prototypes are used about equally often (SwAV: Caron et al., 2020, Eq. 3).

    exp(scores/ε) is scaled in turn so that each prototype has 1/K and each sample 1/n, a few times; in logarithms,
    which neither overflow nor vanish.

    Args:
        scores: of the samples with the prototypes, [n, K], in float32 or better.
        epsilon: ε, above 0; 0.05 in SwAV. The smaller, the harder the codes.
        iterations: at least 1; 3 in SwAV.
        there: bool [n], the samples that count, one at least; None: all. The codes of others mean nothing.

    Returns:
        [n, K], each row a distribution.
    """
    plan = scores / epsilon
    if there is not None:
        plan = plan.masked_fill(~there[:, None], -math.inf)
    for _ in range(iterations):
        plan = plan - plan.logsumexp(0)
        rows = plan.logsumexp(1, keepdim=True)
        plan = plan - (rows if there is None else rows.masked_fill(~there[:, None], 0))
    return plan.exp()


def _themselves(logits: Tensor) -> Tensor:
    return logits


class _Plan:
    """The scaled rows Q = exp(power·logits + log_c + log_r)·c·r, and one Sinkhorn iteration on them.

    log_c [n] and log_r [K] have absorbed what the scaling had come to when `rows` were last computed; c and r are
    what has come since. Which part is where changes nothing but the rounding.
    """

    def __init__(self, features: Tensor, scores: Scores, classes: int, power: float, distributed: bool) -> None:
        self.scores, self.classes, self.power = scores, classes, power
        self.distributed = distributed and dist.is_initialized()
        n, device = len(features), features.device
        self.count = self._total(torch.tensor(float(n), dtype=torch.float64, device=device))
        # What is kept is allocated whole and filled chunk by chunk: scattered small pieces would keep the memory
        # of the passing chunks from being used again.
        self.rows = torch.empty(n, classes, dtype=torch.float32, device=device)
        self.log_c, self.c = (torch.empty(n, dtype=torch.float64, device=device) for _ in range(2))
        self.log_r, self.r = (torch.zeros(classes, dtype=torch.float64, device=device) for _ in range(2))
        size = max(1, (CHUNK_ENTRIES_CUDA if features.is_cuda else CHUNK_ENTRIES) // classes)
        self.chunks = [slice(start, start + size) for start in range(0, n, size)]
        self.features = features
        self._begin()
        self._compute_rows()

    def iterate(self) -> float:
        """c from r, and r from the new c, in one pass over the rows; returns Σ|c/c_new − 1|."""
        sums, error = torch.zeros_like(self.r), torch.zeros_like(self.count)
        for chunk in self.chunks:
            rows = self.rows[chunk].double()
            c = 1 / (self.count * (rows @ self.r))
            sums += c @ rows
            error += (self.c[chunk] / c - 1).abs().sum()
            self.c[chunk] = c
        totals = self._total(torch.cat([sums, error[None]]))
        self.r = 1 / (self.classes * totals[:-1])
        if float(self.r.log().abs().max()) > DRIFT:
            self._absorb()
        return float(totals[-1])

    def labels(self) -> Tensor:
        """The largest entry of each row of Q, int64 [n]; a row's own scaling does not change which it is."""
        scaling = self.log_r + self.r.log()
        labels = torch.empty_like(self.c, dtype=torch.long)
        for chunk in self.chunks:
            labels[chunk] = (self._exponents(chunk) + scaling).argmax(1)
        return labels

    def _begin(self) -> None:
        """The rows softmax(power·logits), and r from their column sums: in the log domain, where none underflows."""
        sums = torch.full_like(self.log_r, -torch.inf)
        for chunk in self.chunks:
            x = self._exponents(chunk)
            self.log_c[chunk] = -x.logsumexp(1)
            sums = torch.logaddexp(sums, x.add_(self.log_c[chunk, None]).logsumexp(0))
        self.log_r = (self.count / self.classes).log() - self._log_total(sums)

    def _absorb(self) -> None:
        self.log_r += self.r.log()
        self.log_c += (self.c * self.count).log()
        self._compute_rows()

    def _compute_rows(self) -> None:
        for chunk in self.chunks:
            self.rows[chunk] = self._exponents(chunk).add_(self.log_c[chunk, None]).add_(self.log_r).exp_()
        self.c.fill_(1 / self.count)
        self.r.fill_(1)

    def _exponents(self, chunk: slice) -> Tensor:
        return self.scores(self.features[chunk]).to(torch.float64, copy=True).mul_(self.power)

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
