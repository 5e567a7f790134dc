"""Losses of the older methods against slow versions, over many steps; a step of each that has a teacher by hand."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.compute.optim import Optimization, ramp_up, sigmoid_ramp_up
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.guesses import consistency_loss
from usl_lightning.models.mixing import mix_weights, partners_of
from usl_lightning.semisup.ict import ICT, ict_loss
from usl_lightning.semisup.mean_teacher import MeanTeacher
from usl_lightning.semisup.pi_model import PiModel
from usl_lightning.semisup.pseudo_label import PseudoLabel, pseudo_label_loss
from usl_lightning.semisup.semisup_module import SemiSupervisedModule
from usl_lightning.semisup.uda import UDA, annealed_cross_entropy, annealing_threshold, uda_loss
from usl_lightning.semisup.vat import VAT

N, C = 7, 4


def draw(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (2 * torch.randn(N, C, generator=generator, dtype=torch.float64) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(x - top) for x in row]
    return [e / sum(exponentials) for e in exponentials]


# Losses --------------------------------------------------------------------------------------------------


def test_consistency_is_the_loops() -> None:
    for seed in range(30):
        own, other = draw(seed)
        loss = consistency_loss(own, other)
        loss.backward()
        pairs = zip(own.tolist(), other.tolist(), strict=True)
        total = sum((p - q) ** 2 for a, b in pairs for p, q in zip(softmax(a), softmax(b), strict=True))
        assert loss.item() == pytest.approx(total / (N * C))
        assert own.grad is not None
        assert other.grad is None, "the target is a constant"


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_pseudo_labels_are_the_loops(threshold: float) -> None:
    for seed in range(30):
        logits, _ = draw(seed)
        loss, mask = pseudo_label_loss(logits, threshold=threshold)
        loss.backward()
        total, gradient = 0.0, []
        for row, counted in zip(logits.tolist(), mask.tolist(), strict=True):
            p = softmax(row)
            assert counted == (max(p) >= threshold)
            total -= math.log(max(p)) * counted
            gradient.append([(q - (q == max(p))) * counted / N for q in p])
        assert loss.item() == pytest.approx(total / N)
        torch.testing.assert_close(logits.grad, torch.tensor(gradient, dtype=torch.float64))


def test_uda_is_the_loops() -> None:
    counted = 0
    for seed in range(30):
        weak, strong = draw(seed)
        loss, mask = uda_loss(weak, strong, temperature=0.4, threshold=0.7)
        loss.backward()
        assert weak.grad is None
        total = 0.0
        for w, s, passes in zip(weak.tolist(), strong.tolist(), mask.tolist(), strict=True):
            p = softmax(w)
            assert passes == (max(p) >= 0.7)
            powers = [q ** (1 / 0.4) for q in p]
            target = [q / sum(powers) for q in powers]
            total -= passes * sum(t * math.log(q) for t, q in zip(target, softmax(s), strict=True))
        assert loss.item() == pytest.approx(total / N)
        counted += sum(mask.tolist())
    assert 0 < counted < 30 * N


def test_the_training_signal_is_annealed() -> None:
    for step in range(0, 101, 10):
        t = step / 100
        for annealing, share in (("linear", t), ("log", 1 - math.exp(-5 * t)), ("exp", math.exp(5 * (t - 1)))):
            eta = annealing_threshold(step, 100, C, annealing)  # type: ignore[arg-type]
            assert eta == pytest.approx(share * (1 - 1 / C) + 1 / C)
            logits, _ = draw(step)
            labels = torch.arange(N) % C
            chosen = [softmax(row)[label] for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
            below = [-math.log(p) for p in chosen if p < eta]
            loss = annealed_cross_entropy(logits, labels, threshold=eta)
            assert loss.item() == pytest.approx(sum(below) / max(1, len(below)))
    logits, _ = draw(0)
    whole = annealed_cross_entropy(logits, torch.arange(N) % C, threshold=annealing_threshold(5, 9, C, "none"))
    torch.testing.assert_close(whole, F.cross_entropy(logits, torch.arange(N) % C))


def test_ict_is_the_loops() -> None:
    for seed in range(30):
        logits, other = draw(seed)
        targets = other.detach().softmax(1)
        pairs = zip(logits.tolist(), targets.tolist(), strict=True)
        total = sum((p - t) ** 2 for row, target in pairs for p, t in zip(softmax(row), target, strict=True))
        assert ict_loss(logits, targets).item() == pytest.approx(total / (N * C))


def test_ramps() -> None:
    assert [ramp_up(step, 4) for step in (0, 2, 4, 9)] == [0, 0.5, 1, 1]
    assert [sigmoid_ramp_up(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])


# Steps ---------------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def batch(n: int, labels: list[int] | None = None, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(n + first)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    known = torch.tensor([-1] * n if labels is None else labels)
    return Batch(images, known, torch.arange(n), Key.of(first, slots=torch.arange(n)))


BATCH = SemiBatch(batch(3, [0, 1, 2]), batch(9, first=1))
X, U = BATCH


def made(monkeypatch: pytest.MonkeyPatch, method: Any, *views: Any, step: int = 0, **options: Any) -> Any:
    """A method at a step of 10, its average another network than it is."""
    torch.manual_seed(0)
    model = method(GREY, *views, Optimization(), backbone="small_nf", **options)
    with torch.no_grad():
        for parameter in model.ema.parameters():
            parameter.mul_(1.5)
    monkeypatch.setattr(model, "log_dict", lambda values, **_: None)
    monkeypatch.setattr(type(model), "global_step", step)
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(max_steps=10, global_step=step, log_every_n_steps=50))
    return model


def seen(model: SemiSupervisedModule, part: Batch, *name: Any, network: Any = None, view: str = "weak") -> Tensor:
    return (network or model.model)(getattr(model, view)(part.images, part.key.fold(*name)))


@pytest.mark.parametrize("step", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("method", [PseudoLabel, PiModel, MeanTeacher])
def test_a_step_is_the_papers(monkeypatch: pytest.MonkeyPatch, method: Any, step: int) -> None:
    """The weight of the unlabelled loss rises over the first 4 of 10 steps."""
    model = made(monkeypatch, method, Weak(), step=step, unlabelled_weight=7.0)
    loss = model.training_step(BATCH, 0)
    supervised = F.cross_entropy(seen(model, X, "weak"), X.labels)
    if method is PseudoLabel:
        unsupervised = pseudo_label_loss(seen(model, U, "weak"), threshold=0.95)[0]
    elif method is PiModel:
        unsupervised = consistency_loss(seen(model, U, "weak", 1), seen(model, U, "weak", 0))
    else:
        teacher = seen(model, U, "weak", 0, network=model.ema.module)
        unsupervised = consistency_loss(seen(model, U, "weak", 1), teacher)
    expected = supervised + 7 * min(1, step / 4) * unsupervised
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [PseudoLabel, PiModel, MeanTeacher, VAT])
def test_what_is_told_of_guesses_is_what_guides(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    """With a prior the network learns the posterior's classes, and these are logged."""
    model = made(monkeypatch, method, Weak())
    prior = torch.tensor([-9.0, 9.0, -9.0])
    monkeypatch.setattr(model, "guided", lambda logits, _: prior.expand_as(logits))
    model.training_step(BATCH, 0)
    assert model.guess_share.nonzero().flatten().tolist() == [1]


def test_a_step_of_uda(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(monkeypatch, UDA, Weak(), FixMatchStrong(), step=5, threshold=0.35, annealing="linear")
    loss = model.training_step(BATCH, 0)
    strong = seen(model, U, "strong", view="strong")
    unsupervised, mask = uda_loss(seen(model, U, "weak"), strong, temperature=0.4, threshold=0.35)
    assert int(mask.sum()) > 0
    eta = 0.5 * (1 - 1 / 3) + 1 / 3
    expected = annealed_cross_entropy(seen(model, X, "weak"), X.labels, threshold=eta) + unsupervised
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_step_of_ict(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(monkeypatch, ICT, Weak(), step=1, ramp=0.4)
    loss = model.training_step(BATCH, 0)
    expected, weight = torch.zeros(()), 100 * math.exp(-5 * 0.75**2)
    for part in BATCH:
        key = part.key.fold("mix")
        views = model.weak(part.images, part.key.fold("weak"))
        one_hot = F.one_hot(part.labels.clamp_min(0), 3).float()
        targets = one_hot if part is X else model.ema.module(views).softmax(1)
        share = mix_weights(key, alpha=1.0)
        mixed = share.view(-1, 1, 1, 1) * views + (1 - share).view(-1, 1, 1, 1) * partners_of([views], [key])
        aims = share[:, None] * targets + (1 - share)[:, None] * partners_of([targets], [key])
        logits = model.model(mixed)
        expected = expected + (F.cross_entropy(logits, aims) if part is X else weight * ict_loss(logits, aims))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_normalises_with_its_batch_and_leaves_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MeanTeacher(GREY, Weak(), Optimization(), backbone="small_w16")
    before = {name: value.clone() for name, value in model.ema.state_dict().items()}
    logits = model.teacher_logits(Weak()(U.images, U.key))
    assert not logits.requires_grad
    for name, value in model.ema.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module.training for module in model.ema.module.modules())
    torch.testing.assert_close(logits, model.model.train()(Weak()(U.images, U.key)).detach())
    assert np.abs((logits - model.ema.module(Weak()(U.images, U.key))).detach().numpy()).max() > 0.01
