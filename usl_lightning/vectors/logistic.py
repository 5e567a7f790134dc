"""Many small logistic regressions at once: the same rows, other weights of them, other strengths of the penalty.

Folds, repeats and strengths of a cross-validation are problems that share their rows; solved together they cost a few
products of matrices a step instead of as many runs of a solver.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import chunks
from usl_lightning.vectors.distances import check_features, exact_arithmetic

STEPS = 3000
"""Of the solver, at most; 50 to 500 are usual."""


def fit_logistic(
    features: Tensor, labels: Tensor, weights: Tensor, penalties: Tensor, *, num_classes: int, tolerance: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """The minima of Σᵢ wᵢ·CEᵢ / Σᵢ wᵢ + penalty/2·|W|², without a penalty on the bias, of B problems.

    A class of which no row counts has probability 0. Nesterov's accelerated gradient, restarted where it would climb
    (O'Donoghue and Candès, 2015), along the principal axes of the rows, where ½·σ²/Σw + penalty bounds the curvature
    (Böhning, 1992).

    Args:
        features: [m, d], any float dtype; computed in float32 or better, in min(m, d) dimensions.
        labels: int64 [m], 0 … num_classes - 1, on the same device.
        weights: [B, m], 0 … 1, some of each problem above 0: how much each row counts.
        penalties: [B], above 0; scikit-learn's `C` is 1/(penalty·Σw).
        num_classes: c.
        tolerance: how far from the minimum the largest weight may end, about, relative to itself.

    Returns:
        Weights [B, c, d] and biases [B, c]; the bias of a class of which no row counts is -inf.

    Raises:
        UslError: features that are not finite, weights or penalties out of range.
    """
    x = check_features(features)
    weights, penalties = weights.to(x), penalties.to(x)
    if bool((weights < 0).any()) or bool((weights > 1).any()) or not bool((weights.sum(1) > 0).all()):
        raise UslError("weights of a logistic regression: expected 0 to 1, some of each problem above 0")
    if not bool((penalties > 0).all()):
        raise UslError("penalties of a logistic regression: expected numbers above 0")
    with exact_arithmetic(x.device):
        mean = x.mean(0)
        left, sigma, axes = torch.linalg.svd(x - mean, full_matrices=False)
        bytes_per_problem = 4 * x.element_size() * num_classes * (len(x) + len(sigma))
        parts = [
            _Problems(left * sigma, sigma, labels, weights[part], penalties[part], num_classes).solve(tolerance)
            for part in chunks(len(weights), bytes_per_problem, x.device)
        ]
        turned, biases = (torch.cat(column) for column in zip(*parts, strict=True))
        solved = turned @ axes
        return solved, biases - solved @ mean


class _Problems:
    """Problems that are solved side by side, over rows [m, r] whose columns are orthogonal, of mean 0."""

    def __init__(
        self, rows: Tensor, sigma: Tensor, labels: Tensor, weights: Tensor, penalties: Tensor, num_classes: int
    ) -> None:
        self.rows, self.truth = rows, F.one_hot(labels, num_classes).to(rows).T.contiguous()  # [c, m]
        totals = weights.sum(1)[:, None, None]
        # One entry for each problem; those that are solved leave.
        self.of_each = {
            "number": torch.arange(len(weights), device=rows.device),
            "absent": torch.where(weights @ self.truth.T > 0, 0.0, -torch.inf)[:, :, None],  # [B, c, 1]
            "share": (weights / totals[:, 0])[:, None],  # [B, 1, m]
            "penalty": penalties[:, None, None],
            "rate": 1 / (0.5 * sigma.square() / totals + penalties[:, None, None]),
            "bias_rate": totals / (0.5 * len(rows)),
            "weight": rows.new_zeros(len(weights), num_classes, rows.shape[1]),
            "bias": rows.new_zeros(len(weights), num_classes, 1),
            "momentum": torch.ones_like(totals),
        }
        self.of_each |= {"ahead": self.of_each["weight"], "bias_ahead": self.of_each["bias"]}
        self.solved = self.of_each["weight"].clone(), self.of_each["absent"].clone()

    def solve(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Weights [B, c, r] and biases [B, c]."""
        for step in range(1, STEPS + 1):
            moved = self._step()
            if step % 10 == 0 or step == STEPS:
                largest = self.of_each["weight"].abs().amax((1, 2)).clamp_min(1e-30)
                # Near the end a step goes about a tenth of what is left.
                going = (moved / largest > tolerance / 10) & (step < STEPS)
                self._part(going)
                if not bool(going.any()):
                    break
        return self.solved[0], self.solved[1][:, :, 0]

    def _step(self) -> Tensor:
        """One step of each; how far its largest weight went, [B]."""
        at = self.of_each
        # All problems in one product: many thin ones take three times as long.
        logits = (at["ahead"].flatten(0, 1) @ self.rows.T).view(*at["ahead"].shape[:2], -1)  # [B, c, m]
        error = at["share"] * ((logits + (at["bias_ahead"] + at["absent"])).softmax(1) - self.truth)
        slope = (error.flatten(0, 1) @ self.rows).view_as(at["ahead"]) + at["penalty"] * at["ahead"]
        bias_slope = error.sum(2, keepdim=True)
        new, new_bias = at["ahead"] - at["rate"] * slope, at["bias_ahead"] - at["bias_rate"] * bias_slope
        moved, bias_moved = new - at["weight"], new_bias - at["bias"]
        climbs = ((slope * moved).sum((1, 2)) + (bias_slope * bias_moved).sum((1, 2)) > 0)[:, None, None]
        following = torch.where(climbs, 1.0, (1 + (1 + 4 * at["momentum"].square()).sqrt()) / 2)
        push = torch.where(climbs, 0.0, (at["momentum"] - 1) / following)
        at |= {"weight": new, "bias": new_bias, "momentum": following}
        at |= {"ahead": new + push * moved, "bias_ahead": new_bias + push * bias_moved}
        return moved.abs().amax((1, 2))

    def _part(self, going: Tensor) -> None:
        """Note the solutions of those that do not go on, and leave them."""
        at = self.of_each
        done = at["number"][~going]
        self.solved[0][done] = at["weight"][~going]
        self.solved[1][done] += at["bias"][~going]
        self.of_each = {name: value[going] for name, value in at.items()}


class LinearHead(nn.Module):
    """Unit features [b, d] -> logits [b, c].

    Args:
        inputs: d.
        outputs: c.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs))
        self.register_buffer("bias", torch.zeros(outputs))

    @classmethod
    def like(cls, state: dict[str, Tensor]) -> "LinearHead":
        """One of the sizes of a state dict, which is yet to be loaded."""
        return cls(state["weight"].shape[1], state["weight"].shape[0])

    def forward(self, features: Tensor) -> Tensor:
        """Logits [b, c]; -inf for a class without a label."""
        return F.linear(features, self.weight, self.bias)


class LogisticLearner:
    """Multinomial logistic regression on unit features, whose mean goes and whose mean squared length becomes 1.

    Args:
        features: unit rows [n, d], of all images: they alone decide mean and length.
        rows: int64 [m], those that are labelled.
        labels: int64 [m].
        num_classes: c.
        strengths: scikit-learn's `C` of each setting.
    """

    def __init__(
        self, features: Tensor, rows: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]
    ) -> None:
        self.features, self.labels, self.num_classes, self.strengths = features, labels, num_classes, strengths
        self.mean = features.mean(0)
        length = (features - self.mean).square().sum(1).mean().sqrt()
        self.scale = torch.where(length > 1e-6, length, 1.0)  # equal images say nothing
        self.x = (features[rows] - self.mean) / self.scale

    def held_out(self, train: Tensor, settings: Sequence[int] | None = None) -> Tensor:
        """Logits of the labelled rows by what is learned from some of them.

        Args:
            train: bool [B, m], which rows each of B learns from, at least one.
            settings: places in `strengths`; None: all.

        Returns:
            [S, B, m, c].
        """
        chosen = range(len(self.strengths)) if settings is None else settings
        found, biases = self._fitted(train, chosen)
        logits = self.x @ found.mT + biases[:, None]
        return logits.view(len(chosen), len(train), *logits.shape[1:])

    def everywhere(self, train: Tensor, setting: int) -> Iterator[Tensor]:
        """Logits [n, c] of all rows by what is learned from some of the labelled ones, for each of B.

        Args:
            train: bool [B, m], which of them each of B learns from, at least one.
            setting: place in `strengths`.
        """
        weights, biases = self._fitted(train, [setting])
        weights = weights / self.scale
        for weight, bias in zip(weights, biases - weights @ self.mean, strict=True):
            yield F.linear(self.features, weight, bias)

    def _fitted(self, train: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weights [S·B, c, d] and biases [S·B, c], of the scaled rows."""
        weights = train.to(self.x)
        penalties = torch.cat([1 / (self.strengths[each] * weights.sum(1)) for each in chosen])
        return fit_logistic(
            self.x, self.labels, weights.repeat(len(chosen), 1), penalties, num_classes=self.num_classes, tolerance=1e-2
        )

    def head(self, setting: int) -> LinearHead:
        """What is learned from all labels."""
        penalty = torch.tensor([1 / (self.strengths[setting] * len(self.x))])
        everything = torch.ones(1, len(self.x), device=self.x.device)
        weight, bias = fit_logistic(self.x, self.labels, everything, penalty, num_classes=self.num_classes)
        head = LinearHead(self.x.shape[1], self.num_classes).to(self.x.device)
        head.weight.copy_(weight[0] / self.scale)
        head.bias.copy_(bias[0] - weight[0] @ (self.mean / self.scale))
        return head

    def scores(self, head: nn.Module) -> Tensor:
        """Logits [n, c] of all rows."""
        scored: Tensor = head(self.features)
        return scored
