"""FreeMatch's state and losses against slow versions in NumPy, over many steps; its first step by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.guesses import thresholded_loss
from usl_lightning.semisup.freematch import (
    FreeMatch,
    fairness_loss,
    self_adaptive_thresholds,
    updated_averages,
)

C, M = 4, 0.9


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Slow:
    """Equations 5 to 12, sample by sample."""

    def __init__(self) -> None:
        self.tau, self.p, self.h = 1 / C, np.full(C, 1 / C), np.full(C, 1 / C)

    def step(self, weak: np.ndarray, strong: np.ndarray) -> tuple[float, float, list[bool]]:
        q, n = softmax(weak), len(weak)
        self.tau = M * self.tau + (1 - M) * sum(row.max() for row in q) / n
        for c in range(C):
            self.p[c] = M * self.p[c] + (1 - M) * sum(row[c] for row in q) / n
            self.h[c] = M * self.h[c] + (1 - M) * sum(row.argmax() == c for row in q) / n
        mask, loss, mean, counts = [], 0.0, np.zeros(C), np.zeros(C)
        for row, s in zip(q, softmax(strong), strict=True):
            label = int(row.argmax())
            mask.append(bool(row[label] >= self.tau * self.p[label] / max(self.p)))
            if mask[-1]:
                loss -= np.log(s[label]) / n
                mean += s
                counts[s.argmax()] += 1
        if not any(mask):
            return loss, 0.0, mask
        wanted = self.p / self.h
        present = [c for c in range(C) if counts[c]]
        total = sum(mean[c] / counts[c] for c in present)
        fairness = sum(wanted[c] / wanted.sum() * np.log(mean[c] / counts[c] / total) for c in present)
        return loss, fairness, mask


def draw(seed: int, n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    weak, strong = (2 * torch.randn(n, C, generator=generator, dtype=torch.float64) + bias for _ in range(2))
    return weak, strong.requires_grad_()


def start() -> tuple[Tensor, Tensor, Tensor]:
    uniform = torch.full((C,), 1 / C, dtype=torch.float64)
    return uniform[0], uniform, uniform


def test_forty_steps_are_the_loops() -> None:
    state, slow, rates = start(), Slow(), []
    for seed in range(40):
        weak, strong = draw(seed)
        state = updated_averages(weak.softmax(1), *state, momentum=M)
        loss, mask = thresholded_loss(weak, strong, self_adaptive_thresholds(*state[:2]))
        fairness = fairness_loss(strong, mask, *state[1:])
        expected, expected_fairness, passes = slow.step(weak.numpy(), strong.detach().numpy())
        assert loss.item() == pytest.approx(expected, rel=1e-9)
        assert fairness.item() == pytest.approx(expected_fairness, rel=1e-9)
        assert mask.tolist() == passes
        for own, theirs in zip(state, (slow.tau, slow.p, slow.h), strict=True):
            np.testing.assert_allclose(own.numpy(), theirs, rtol=1e-10)
        rates.append(np.mean(passes))
    assert rates[0] > 0.9, "all but nothing is held back at first"
    assert 0.1 < np.mean(rates[20:]) < 0.9


def test_states_by_hand() -> None:
    """Two classes, one step: (0.9, 0.1) and (0.4, 0.6), momentum ¾."""
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    probs = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    tau, mean, histogram = updated_averages(probs, half[0], half, half, momentum=0.75)
    assert tau.item() == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)
    assert mean.tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.65, 0.75 * 0.5 + 0.25 * 0.35])
    assert histogram.tolist() == [0.5, 0.5]
    thresholds = self_adaptive_thresholds(tau, mean)
    assert thresholds.tolist() == pytest.approx([0.5625, 0.5625 * 0.4625 / 0.5375])
    mask = thresholded_loss(probs.log(), probs.log(), thresholds)[1]
    assert mask.tolist() == [True, True]


def test_fairness_by_hand() -> None:
    """p̄/h̄ = (0.7, 0.6), scaled (7/13, 6/13); p̃/h̃ = (0.5, 2), scaled (0.2, 0.8)."""
    strong = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.99, 0.01]], dtype=torch.float64).log()
    mask = torch.tensor([True, True, False])
    mean, histogram = torch.tensor([[0.2, 0.8], [0.4, 0.4]], dtype=torch.float64)
    sums = np.array([1.1, 0.9]) / 1  # each class is the largest once
    expected = 0.2 * np.log(sums[0] / 2) + 0.8 * np.log(sums[1] / 2)
    assert fairness_loss(strong, mask, mean, histogram).item() == pytest.approx(expected)


def test_gradients_are_those_of_finite_differences_and_of_the_published_code() -> None:
    """Which adds 1e-12 in the logarithm, also where a class is missing."""
    _, strong = draw(3, 6)
    mask = torch.tensor([True, True, True, False, True, False])
    mean, histogram = torch.rand(2, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda s: fairness_loss(s, mask, mean, histogram), strong)
    fairness_loss(strong, mask, mean, histogram).backward()
    other = strong.detach().clone().requires_grad_()
    chosen = other[mask].softmax(1)
    shares = torch.bincount(chosen.argmax(1), minlength=C) / 4
    assert bool((shares == 0).any())
    q = chosen.mean(0) * torch.where(shares > 0, 1 / shares, 0.0)
    ratio = mean / histogram
    (ratio / ratio.sum() * torch.log(q / q.sum() + 1e-12)).sum().backward()
    torch.testing.assert_close(strong.grad, other.grad, rtol=1e-6, atol=1e-9)


def test_none_that_counts_is_zero_with_a_graph() -> None:
    _, strong = draw(0)
    uniform = torch.full((C,), 1 / C, dtype=torch.float64)
    loss = fairness_loss(strong, torch.zeros(12, dtype=torch.bool), uniform, uniform)
    loss.backward()
    assert loss.item() == 0
    assert strong.grad is not None
    assert not strong.grad.any()
    zero = torch.zeros(C, dtype=torch.float64)
    assert bool(fairness_loss(strong, torch.ones(12, dtype=torch.bool), uniform, zero).isfinite())


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def batch(n: int, labels: list[int] | None = None, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(n + first)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    known = torch.tensor([-1] * n if labels is None else labels)
    return Batch(images, known, torch.arange(n), Key.of(first, slots=torch.arange(n)))


def test_a_step_updates_before_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = FreeMatch(
        GREY, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf", momentum=0.5, fairness_weight=2.0
    )
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    state = (torch.tensor(1 / 3), torch.full((3,), 1 / 3), torch.full((3,), 1 / 3))
    for first in (0, 20):
        labelled, unlabelled = batch(3, [0, 1, 2]), batch(20, first=first)
        loss = model.training_step(SemiBatch(labelled, unlabelled), 0)
        x, weak, strong = (
            model.model(view(part.images, part.key.fold(name)))
            for view, part, name in (
                (model.weak, labelled, "weak"),
                (model.weak, unlabelled, "weak"),
                (model.strong, unlabelled, "strong"),
            )
        )
        state = updated_averages(weak.detach().softmax(1), *state, momentum=0.5)
        unsupervised, mask = thresholded_loss(weak, strong, self_adaptive_thresholds(*state[:2]))
        expected = torch.nn.functional.cross_entropy(x, labelled.labels) + unsupervised
        expected += 2 * fairness_loss(strong, mask, *state[1:])
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        for name, value in zip(("confidence", "mean_probs", "histogram"), state, strict=True):
            torch.testing.assert_close(model.state_dict()[name], value)
        assert float(logged["mask_rate"]) == pytest.approx(float(mask.float().mean()))
