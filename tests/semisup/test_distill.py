"""Distillation: its loss against a loop, its step by hand, its teacher."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.models.heads import load_classifier
from usl_lightning.semisup.distill import Distill, distillation_loss
from usl_lightning.semisup.finetune import FineTune


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    exponentials = [math.exp((x - top) / temperature) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def slow_distillation(student: Tensor, teacher: Tensor, temperature: float) -> tuple[float, list[list[float]]]:
    """Equation 2 image by image: value, and gradient with respect to the student's logits."""
    total, gradient = 0.0, []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / len(student)
        gradient.append([(b - a) / temperature / len(student) for a, b in zip(p, q, strict=True)])
    return total, gradient


@given(st.integers(1, 8), st.integers(2, 6), st.sampled_from([0.1, 0.5, 1.0, 4.0]), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_values_and_gradients_are_the_loops(n: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(n, classes, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )
    loss = distillation_loss(student, teacher, temperature=temperature)
    loss.backward()
    value, gradient = slow_distillation(student, teacher, temperature)
    assert loss.item() == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(student.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-8, atol=1e-10)
    assert teacher.grad is None, "the teacher is a constant"


def test_a_student_like_its_teacher_is_at_the_minimum() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    loss = distillation_loss(logits, logits, temperature=0.5)
    p = (logits.detach() / 0.5).softmax(1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item()), "the teacher's entropy"
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-12)


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))
TRAINER = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))


def write_teacher(path: Path, image: ImageSpec = GREY, backbone: str = "small_w16") -> str:
    """The checkpoint of a fine-tuned network with a projection layer."""
    torch.manual_seed(5)
    model = FineTune(image, Weak(), Optimization(), backbone, projection_layers_kept=1, hidden_dim=8, ema_decay=0.5)
    with torch.no_grad():
        for parameter in model.ema.parameters():
            parameter.mul_(1.2)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def distill(teacher: str | None, **options: Any) -> Distill:
    torch.manual_seed(0)
    return Distill(GREY, Weak(), Optimization(), teacher, "small_nf", temperature=0.5, **options)


def batch(n: int, labels: list[int], name: str = "x") -> Batch:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.arange(n), Key.of(0, name, slots=torch.arange(n)))


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_the_step_is_equation_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    path = write_teacher(tmp_path / "a.ckpt")
    model = distill(path, distillation_weight=weight)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(model, "_trainer", TRAINER)
    model.setup("fit")
    passes: list[int] = []
    model.model.encoder.register_forward_hook(lambda _m, x, _o: passes.append(len(x[0])))
    labelled, unlabelled = batch(3, [0, 1, 2]), batch(7, [-1] * 7, "u")
    loss = model.training_step(SemiBatch(labelled, unlabelled), 0)
    assert passes == [7 if weight == 1 else 10], "one forward pass; labels that do not count are not looked at"

    teacher = load_classifier(path)
    views = model.view(unlabelled.images, unlabelled.key.fold("view"))
    taught = torch.cat([model.model(view[None]) for view in views]).double()
    targets = torch.cat([teacher(view[None]) for view in views]).double()
    distillation, _ = slow_distillation(taught, targets, 0.5)
    x = [model.model(view[None])[0].tolist() for view in model.view(labelled.images, labelled.key.fold("view"))]
    supervised = -sum(math.log(softmax(row)[label]) for label, row in enumerate(x)) / 3
    assert loss.item() == pytest.approx(weight * distillation + (1 - weight) * supervised, rel=1e-5)
    agree = (taught.argmax(1) == targets.argmax(1)).double().mean().item()
    assert logged["teacher_agreement"].item() == pytest.approx(agree)


def test_the_teacher_is_fixed_and_not_part_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = distill(write_teacher(tmp_path / "a.ckpt"))
    names, parameters = set(model.state_dict()), len(list(model.parameters()))
    monkeypatch.setattr(model, "_trainer", TRAINER)
    model.setup("fit")
    model.train()
    assert set(model.state_dict()) == names
    assert len(list(model.parameters())) == parameters
    teacher = model._teacher[0]
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b")), r"knows 2 classes \(a, b, …\), the label index 3 \(a, b, c"),
        (ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "c", "b")), "expected the same in the same order"),
        (ImageSpec(3, 8, 8, (0.3,) * 3, (0.2,) * 3, ("a", "b", "c")), "takes 3-channel images, these have 1"),
    ],
)
def test_a_teacher_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: ImageSpec, message: str
) -> None:
    model = distill(write_teacher(tmp_path / "a.ckpt", image))
    monkeypatch.setattr(model, "_trainer", TRAINER)
    with pytest.raises(UslError, match=f"^model.teacher_from: .*{message}"):
        model.setup("fit")


def test_a_teacher_is_needed_only_to_train() -> None:
    distill(None).setup("test")
    with pytest.raises(UslError, match=r"model.teacher_from: expected a checkpoint of stage 3"):
        distill(None).setup("fit")
