"""SoftMatch's state, weights and loss against a slow version in NumPy, over many steps; and by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.semisup.softmatch import (
    SoftMatch,
    softmatch_loss,
    truncated_gaussian,
    updated_gaussian,
    updated_mean_probs,
)

C, M = 3, 0.8
GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(x - top) for x in row]
    return [e / sum(exponentials) for e in exponentials]


class Slow:
    """Averages, alignment, weights and loss, number by number."""

    def __init__(self) -> None:
        self.p: list[float] | None = None
        self.mu, self.var = 1 / C, 1.0

    def step(self, weak: list[list[float]], strong: list[list[float]]) -> tuple[float, list[float]]:
        probs, n = [softmax(row) for row in weak], len(weak)
        mean = [sum(p[c] for p in probs) / n for c in range(C)]
        self.p = mean if self.p is None else [M * old + (1 - M) * new for old, new in zip(self.p, mean, strict=True)]
        confidence = []
        for p in probs:
            ratios = [p[c] / C / self.p[c] for c in range(C)]
            confidence.append(max(ratios) / sum(ratios))
        mu = sum(confidence) / n
        self.mu = M * self.mu + (1 - M) * mu
        self.var = M * self.var + (1 - M) * sum((x - mu) ** 2 for x in confidence) / (n - 1)
        weights = [1 if x > self.mu else math.exp(-((x - self.mu) ** 2) / (2 * self.var / 4)) for x in confidence]
        losses = [-math.log(softmax(s)[p.index(max(p))]) for s, p in zip(strong, probs, strict=True)]
        return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / n, weights


def model(**options: object) -> SoftMatch:
    made = SoftMatch(GREY, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf", momentum=M, **options)  # type: ignore[arg-type]
    return made.double()


def draw(seed: int, n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)
    weak, strong = (2 * torch.randn(n, C, generator=generator, dtype=torch.float64) + bias for _ in range(2))
    return weak, strong.requires_grad_()


def test_forty_steps_are_the_loops() -> None:
    softmatch, slow, aligned_differs = model(), Slow(), 0
    for seed in range(40):
        weak, strong = draw(seed)
        weights = softmatch.weights(weak.softmax(1))
        loss = softmatch_loss(weak, strong, weights)
        expected, expected_weights = slow.step(weak.tolist(), strong.tolist())
        assert loss.item() == pytest.approx(expected, rel=1e-7)
        assert weights.tolist() == pytest.approx(expected_weights, rel=1e-6)
        assert softmatch.mean_probs.tolist() == pytest.approx(slow.p)
        assert float(softmatch.confidence_mean) == pytest.approx(slow.mu)
        assert float(softmatch.confidence_variance) == pytest.approx(slow.var)
        aligned = weak.softmax(1) / softmatch.mean_probs
        aligned_differs += int((aligned.argmax(1) != weak.argmax(1)).sum())
    assert aligned_differs, "the label is that of the prediction without alignment"
    assert 0 < min(expected_weights) < 0.9 < max(expected_weights) == 1


def test_states_by_hand() -> None:
    """Confidences 0.9 and 0.5, momentum ¾: μ = ¾·½ + ¼·0.7, σ² = ¾ + ¼·0.08 (unbiased)."""
    confidence = torch.tensor([0.9, 0.5], dtype=torch.float64)
    start = torch.tensor(0.5, dtype=torch.float64)
    mean, variance = updated_gaussian(confidence, start, start.new_tensor(1.0), momentum=0.75)
    assert mean.item() == pytest.approx(0.55)
    assert variance.item() == pytest.approx(0.77)
    weights = truncated_gaussian(confidence, mean, variance, sigmas=2)
    assert weights.tolist() == pytest.approx([1.0, math.exp(-(0.05**2) / (2 * 0.77 / 4))])


def test_the_first_batch_counts_as_it_is() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    first = updated_mean_probs(probs, torch.zeros(2), momentum=0.999)
    assert first.tolist() == pytest.approx([0.7, 0.3])
    second = updated_mean_probs(probs.flip(1), first, momentum=0.75)
    assert second.tolist() == pytest.approx([0.75 * 0.7 + 0.25 * 0.3, 0.75 * 0.3 + 0.25 * 0.7])


def test_weights_of_confidences_that_are_all_alike_or_alone() -> None:
    for confidence in (torch.full((5,), 0.6), torch.tensor([0.6])):
        mean, variance = updated_gaussian(confidence, torch.tensor(0.1), torch.tensor(1.0), momentum=0.0)
        assert variance.item() == pytest.approx(0, abs=1e-12)
        assert truncated_gaussian(confidence, mean, variance, sigmas=2).tolist() == [1] * len(confidence)
        assert truncated_gaussian(confidence - 0.1, mean, variance, sigmas=2).tolist() == [0] * len(confidence)


def test_without_alignment_the_prediction_itself_is_weighted() -> None:
    softmatch = model(alignment=False)
    weak, _ = draw(0)
    weights = softmatch.weights(weak.softmax(1))
    confidence = weak.softmax(1).max(1).values
    below = np.minimum(0, confidence.numpy() - float(softmatch.confidence_mean))
    np.testing.assert_allclose(weights, np.exp(-2 * below**2 / float(softmatch.confidence_variance)))


def test_the_label_gets_no_gradient() -> None:
    weak, strong = draw(1)
    weak.requires_grad_()
    softmatch_loss(weak, strong, torch.ones(10)).backward()
    assert weak.grad is None
