"""BOSS's four balancings, in both published readings, against slow versions of them."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from usl_lightning.models.guesses import fixmatch_loss
from usl_lightning.semisup.boss import balanced_thresholds, boss_loss, boss_weights

C = 4


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def slow(weak: list[list[float]], strong: list[list[float]], balance: int, code: str) -> tuple[float, list[float]]:
    """τ 0.6, Δ 0.3: loss and weights, image by image."""
    probs = [softmax(row) for row in weak]
    labels = [p.index(max(p)) for p in probs]
    counts, most = Counter(labels), max(Counter(labels).values())
    passes = []
    for p, label in zip(probs, labels, strict=True):
        threshold = 0.6 - 0.3 * (1 - counts[label] / most) if balance in (1, 4) else 0.6
        passes.append(max(p) >= threshold)
    weights = [float(passed) for passed in passes]
    if balance in (2, 3) or (balance == 4 and code == "tensorflow"):
        those = Counter(label for label, passed in zip(labels, passes, strict=True) if passed)
        divisor = counts if balance == 2 else those
        weights = [passed / divisor[label] if passed else 0.0 for label, passed in zip(labels, passes, strict=True)]
        total = sum(weights)
        weights = [weight * sum(passes) / total if total else 0.0 for weight in weights]
    losses = [-w * math.log(softmax(s)[label]) for w, s, label in zip(weights, strong, labels, strict=True)]
    return sum(losses) / (len(weak) if code == "tensorflow" else max(1, sum(passes))), weights


def draw(seed: int, n: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.tensor([0.8, 0.4, 0.0, -0.5], dtype=torch.float64)
    weak, strong = (1.5 * torch.randn(n, C, generator=generator, dtype=torch.float64) + bias for _ in range(2))
    return weak.requires_grad_(), strong.requires_grad_()


@pytest.mark.parametrize("code", ["tensorflow", "pytorch"])
@pytest.mark.parametrize("balance", [1, 2, 3, 4])
def test_forty_steps_are_the_loops(balance: int, code: Any) -> None:
    for seed in range(40):
        weak, strong = draw(seed)
        weights = boss_weights(weak, balance=balance, threshold=0.6, relaxation=0.3, code=code)
        loss = boss_loss(weak, strong, weights, code=code)
        loss.backward()
        expected, expected_weights = slow(weak.tolist(), strong.tolist(), balance, code)
        assert weights.tolist() == pytest.approx(expected_weights)
        assert loss.item() == pytest.approx(expected)
        assert weak.grad is None


def test_the_readings_differ_where_they_are_said_to() -> None:
    weak, _ = draw(1, 40)
    made = {
        (balance, code): boss_weights(weak, balance=balance, threshold=0.6, relaxation=0.3, code=code)  # type: ignore[arg-type]
        for balance in (1, 2, 3, 4)
        for code in ("tensorflow", "pytorch")
    }
    for balance in (1, 2, 3):
        assert torch.equal(made[balance, "tensorflow"], made[balance, "pytorch"])
    assert torch.equal(made[4, "pytorch"], made[1, "pytorch"])
    assert not torch.equal(made[4, "tensorflow"], made[4, "pytorch"])
    assert not torch.equal(made[2, "pytorch"], made[3, "pytorch"])


def test_thresholds_by_hand() -> None:
    thresholds = balanced_thresholds(torch.tensor([8.0, 4.0, 0.0]), threshold=0.95, relaxation=0.2)
    assert thresholds.tolist() == pytest.approx([0.95, 0.85, 0.75])


def test_without_relaxation_it_is_fixmatch_and_none_that_passes_is_zero() -> None:
    weak, strong = draw(2)
    weights = boss_weights(weak, balance=1, threshold=0.6, relaxation=0.0, code="tensorflow")
    loss, mask = fixmatch_loss(weak, strong, threshold=0.6)
    assert torch.equal(weights > 0, mask)
    torch.testing.assert_close(boss_loss(weak, strong, weights, code="tensorflow"), loss)
    for balance in (1, 2, 3, 4):
        for code in ("tensorflow", "pytorch"):
            none = boss_weights(0 * weak, balance=balance, threshold=1.0, relaxation=0.0, code=code)  # type: ignore[arg-type]
            assert not none.any()
            assert boss_loss(weak, strong, none, code=code).item() == 0  # type: ignore[arg-type]
