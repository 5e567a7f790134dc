"""A linear classifier on frozen features: multinomial logistic regression, fitted by L-BFGS or by SGD."""

import math
from collections.abc import Sequence
from typing import Required, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import derive_seed, permutation
from usl_lightning.vectors.distances import check_features, exact_arithmetic

_CHUNK = 65_536  # rows of logits at a time: 262 MB for 1,000 classes


def fit_logistic_regression(
    features: Tensor, labels: Tensor, *, num_classes: int, penalty: float, iterations: int = 200
) -> tuple[Tensor, Tensor]:
    """The minimum of mean cross-entropy + penalty/2·|W|², without a penalty on the bias.

    Args:
        features: [n, d], finite, any float dtype; computed in float32 or better.
        labels: int64 [n], 0 … num_classes - 1, on the same device.
        num_classes: c.
        penalty: ≥ 0; scikit-learn's `C` is 1/(n·penalty).
        iterations: of L-BFGS, at most.

    Returns:
        Weights [c, d] and bias [c].

    Raises:
        UslError: features that are not finite, labels out of range, or none.
    """
    x = check_features(features)
    if len(labels) != len(x) or labels.min() < 0 or labels.max() >= num_classes:
        raise UslError(
            f"labels of the linear probe: expected one from 0 to {num_classes - 1} for each of {len(x)} rows"
        )
    weight, bias = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def objective() -> float:
        """The value; its gradient goes to where the solver looks for it."""
        weight.grad, bias.grad = penalty * weight, torch.zeros_like(bias)
        total = penalty / 2 * weight.square().sum()
        for rows, targets in zip(torch.split(x, _CHUNK), torch.split(labels, _CHUNK), strict=True):
            log_p = F.log_softmax(torch.addmm(bias, rows, weight.T), dim=1)
            total = total + F.nll_loss(log_p, targets, reduction="sum") / len(x)
            error = log_p.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(targets, dtype=x.dtype)[:, None])
            weight.grad += error.T @ rows / len(x)
            bias.grad += error.sum(0) / len(x)
        return float(total)

    with torch.no_grad(), exact_arithmetic(x.device):
        solver.step(objective)  # type: ignore[no-untyped-call]
    return weight, bias


def fit_by_sgd(
    features: Tensor, labels: Tensor, *, num_classes: int, seed: int, epochs: int = 100
) -> tuple[Tensor, Tensor]:
    """Logistic regression as papers of stage 1 train it; the figures are those of SwAV's published code.

    Batches of 256, SGD of momentum 0.9, a rate of 0.3 that falls by a cosine from epoch to epoch, weight decay 1e-6. It
    sees features as they were computed once, where the papers draw other views in each epoch.

    Args:
        features: [n, d], finite, any float dtype; computed in float32 or better.
        labels: int64 [n], 0 … num_classes - 1, on the same device.
        num_classes: c.
        seed: of the first weights and of the order.
        epochs: at least 1.

    Returns:
        Weights [c, d] and bias [c].
    """
    x = check_features(features)
    random = torch.Generator().manual_seed(derive_seed(seed, "probe"))
    parameters = torch.zeros(num_classes, x.shape[1] + 1, dtype=x.dtype, device=x.device)  # the bias last
    parameters[:, :-1] = 0.01 * torch.randn(num_classes, x.shape[1], generator=random)
    velocity = torch.zeros_like(parameters)
    with torch.no_grad(), exact_arithmetic(x.device):
        for epoch in range(epochs):
            rate = 0.3 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            for some in torch.split(permutation(len(x), seed, "probe", epoch).to(x.device), 256):
                rows, targets = x[some], labels[some]
                error = torch.addmm(parameters[:, -1], rows, parameters[:, :-1].T).softmax(1)
                error.scatter_add_(1, targets[:, None], -torch.ones_like(targets, dtype=x.dtype)[:, None])
                gradient = torch.cat([error.T @ rows, error.sum(0)[:, None]], dim=1).div_(len(some))
                velocity.mul_(0.9).add_(gradient).add_(parameters, alpha=1e-6)
                parameters.sub_(velocity, alpha=rate)
    return parameters[:, :-1], parameters[:, -1]


class ProbeOptions(TypedDict, total=False):
    """How a linear probe is fitted, see `probe_accuracies`."""

    num_classes: Required[int]
    penalty: float
    sgd_seed: int | None


def probe_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    **options: Unpack[ProbeOptions],
) -> float:
    """The first of `probe_accuracies`: how often the likeliest class is right."""
    return probe_accuracies(features, labels, test_features, test_labels, **options)[0]


def probe_accuracies(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    penalty: float = 1e-2,
    sgd_seed: int | None = None,
    tops: Sequence[int] = (1,),
) -> list[float]:
    """Accuracies of logistic regression on standardised features, 0 … 1.

    Args:
        features, labels: to fit on, [n, d] and int64 [n]; rows labelled -1 (unknown) are left out.
        test_features, test_labels: to measure on, alike.
        num_classes: how many classes there are.
        penalty: see `fit_logistic_regression`.
        sgd_seed: fit by SGD instead, without that penalty, see `fit_by_sgd`.
        tops: what counts as right: the label is among so many likeliest classes, 1 to `num_classes`.

    Returns:
        For each of `tops` the fraction of test rows with a known label that is right; NaN if there is none.

    Raises:
        UslError: no known label to fit on, or features that are not finite.
    """
    known, tested = labels >= 0, test_labels >= 0
    if not known.any():
        raise UslError("labels of the linear probe: none is known; it needs some to fit on")
    x, y = features[known].detach(), test_features[tested].detach()
    x, y = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (x, y))
    std, mean = torch.std_mean(x, dim=0, correction=0)
    scale = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0)  # a constant column says nothing
    x, own = (x - mean) / scale, labels[known]
    if sgd_seed is None:
        weight, bias = fit_logistic_regression(x, own, num_classes=num_classes, penalty=penalty)
    else:
        weight, bias = fit_by_sgd(x, own, num_classes=num_classes, seed=sgd_seed)
    logits = torch.addmm(bias, (y - mean) / scale, weight.T)
    right = logits.topk(max(tops), dim=1).indices == test_labels[tested][:, None]
    return [float(right[:, :top].any(1).double().mean()) for top in tops]


def balanced_subset(labels: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """A random subset with as many points of each class as possible: a function of the seed.

    Args:
        labels: int64 [n] on any device; points labelled -1 (unknown) are never taken.
        count: points to take; all with a known label if there are fewer.

    Returns:
        Positions, int64 [min(count, known)], ascending, on the CPU. Numbers of two classes differ by more than one
        only where the smaller class is used up.
    """
    labels = labels.cpu()
    order = permutation(len(labels), seed, "labelled subset")
    order = order[labels[order] >= 0]
    # Each point's place within its class, in that order; the lowest places of all classes are taken.
    by_class = torch.argsort(labels[order], stable=True)
    sizes = torch.bincount(labels[order])
    place = torch.empty_like(order)
    place[by_class] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[torch.argsort(place, stable=True)[:count]].sort().values
