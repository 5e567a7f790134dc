"""VAT's perturbation against the eigenvectors that it stands for; its losses against loops; its step by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.semisup.vat import VAT, adversarial_perturbation, divergence, entropy, normal_numbers, unit

N, C, D = 6, 3, 5


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_and_entropy_are_the_loops() -> None:
    for seed in range(30):
        target, logits = numbers(N, C, seed=seed), numbers(N, C, seed=100 + seed)
        target.requires_grad_()
        p, q = (x.detach().softmax(1).tolist() for x in (target, logits))
        kl = sum(a * math.log(a / b) for r, s in zip(p, q, strict=True) for a, b in zip(r, s, strict=True)) / N
        value = divergence(target, logits.requires_grad_())
        assert value.item() == pytest.approx(kl)
        value.backward()
        assert target.grad is None
        assert entropy(logits).item() == pytest.approx(-sum(b * math.log(b) for s in q for b in s) / N)


def test_many_power_steps_find_the_worst_direction() -> None:
    """Of a linear network the divergence is ½·rᵀWᵀ(diag p − ppᵀ)Wr for small r, its largest eigenvector the answer."""
    weight = numbers(C, D)
    images, start = numbers(N, D, 1, 1, seed=1), numbers(N, D, 1, 1, seed=2)

    def network(perturbation: Tensor) -> Tensor:
        return (images + perturbation).flatten(1) @ weight.T

    logits = network(torch.zeros_like(images))
    options: Any = {"radius": 0.7, "step": 1e-4}
    found = adversarial_perturbation(network, logits, start, power_steps=60, **options).flatten(1)
    once = adversarial_perturbation(network, logits, start, power_steps=1, **options).flatten(1)
    for p, r, s, first in zip(logits.softmax(1), found, once, start.flatten(1), strict=True):
        fisher = weight.T @ (p.diag() - p[:, None] * p) @ weight
        worst = torch.linalg.eigh(fisher).eigenvectors[:, -1]
        assert abs(float(r @ worst)) == pytest.approx(0.7, rel=1e-3)
        step = fisher @ first
        torch.testing.assert_close(s, 0.7 * step / step.norm(), rtol=1e-3, atol=1e-4)
    none = adversarial_perturbation(network, logits, start, power_steps=0, **options)
    torch.testing.assert_close(none, 0.7 * unit(start))


def test_units_have_length_one_and_zeros_stay() -> None:
    made = unit(torch.cat([numbers(2, 3, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.float64)]))
    assert made.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1, 0])


def test_directions_are_normally_distributed() -> None:
    drawn = normal_numbers(Key.of(3, slots=torch.arange(50)), 100)
    assert drawn.shape == (50, 100)
    assert bool(drawn.isfinite().all())
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.equal(drawn[7:9], normal_numbers(Key.of(3, slots=torch.arange(7, 9)), 100))


GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def batch(n: int, labels: list[int], first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(n + first)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.arange(n), Key.of(first, slots=torch.arange(n)))


@pytest.mark.parametrize("backbone", ["small_nf", "small_w16"])
def test_30_steps_are_the_papers(monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    """The perturbation is of the normalised image; only the labelled pass moves the running statistics."""
    torch.manual_seed(0)
    model = VAT(
        GREY, Weak(), Optimization(), backbone=backbone, radius=2.0, step=0.1, entropy_weight=0.5, unlabelled_weight=3.0
    )
    monkeypatch.setattr(model, "log_dict", lambda values, **_: None)
    monkeypatch.setattr(VAT, "global_step", 1)
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(max_steps=10, global_step=1, log_every_n_steps=50))
    twin = VAT(GREY, Weak(), Optimization(), backbone=backbone).model
    for step in range(30):
        x, u = batch(4, [0, 1, 2, 0], 9 * step), batch(9, [-1] * 9, 9 * step + 1)
        twin.load_state_dict(model.model.state_dict())
        loss = model.training_step(SemiBatch(x, u), 0)
        supervised = F.cross_entropy(twin(model.weak(x.images, x.key.fold("weak"))), x.labels)
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(value, model.model.state_dict()[name])
        views = model.weak(u.images, u.key.fold("weak"))

        def network(perturbation: Tensor, views: Tensor = views) -> Tensor:
            return twin(views + 0.2 * perturbation)

        logits = network(torch.zeros_like(views))
        start = normal_numbers(u.key.fold("direction"), 64).view(9, 1, 8, 8)
        perturbation = adversarial_perturbation(network, logits, start, radius=2.0, step=0.1, power_steps=1)
        expected = supervised + 3 * 0.25 * divergence(logits, network(perturbation)) + 0.5 * entropy(logits)
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.parameters())
