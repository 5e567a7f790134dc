"""The negative cosine against another library and a loop; SimSiam's step by hand; collapse shows in the log."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NegativeCosineSimilarity
from runs import usl
from torch import Tensor, nn
from training import (
    MakeModel,
    Stop,
    train,
)

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import SmallGreyView, Weak
from usl_lightning.pretrain.simsiam import SimSiam, negative_cosine
from usl_lightning.stage.words import StageCommand

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 8))


def vectors(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, z = (torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return p, z


def slow_negative_cosine(p: Tensor, z: Tensor) -> float:
    """Equation 1 of the paper, term by term."""
    total = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        total -= dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))
    return total / len(p)


@given(SHAPES, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_is_the_papers_equation(shape: tuple[int, int], seed: int) -> None:
    p, z = vectors(*shape, seed)
    assert negative_cosine(p, z).item() == pytest.approx(slow_negative_cosine(p, z), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(1, 3), (16, 8), (33, 2048)])
def test_values_and_gradients_are_lightlys(n: int, d: int) -> None:
    ours, theirs = vectors(n, d, dtype=torch.float32), vectors(n, d, dtype=torch.float32)
    loss, other = negative_cosine(*ours), NegativeCosineSimilarity()(*theirs)
    loss.backward()
    other.backward()
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(negative_cosine, vectors(4, 3))


def test_closed_forms() -> None:
    eye = torch.eye(4)
    assert negative_cosine(eye, 3 * eye).item() == pytest.approx(-1)
    assert negative_cosine(eye, -eye).item() == pytest.approx(1)
    assert negative_cosine(eye, eye.roll(1, 0)).item() == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_single(dtype: torch.dtype) -> None:
    p, z = (x.detach().to(dtype) for x in vectors(8, 512, dtype=torch.float32))
    single = negative_cosine(p.float(), z.float())
    assert torch.equal(negative_cosine(p, z), single)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(negative_cosine(p, z), single)


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def simsiam(backbone: str = "small_nf", **options: Any) -> tuple[SimSiam, dict[str, Tensor]]:
    """A small model, and what it logs."""
    torch.manual_seed(0)
    model = SimSiam(
        GREY, Weak(), Optimization(lr=0.4), backbone=backbone, hidden_dim=16, projection_dim=12, prediction_dim=4,
        knn_k=3, **options,
    )  # fmt: skip
    model._trainer = SimpleNamespace(log_every_n_steps=1, global_step=0)  # type: ignore[assignment]
    logged: dict[str, Tensor] = {}
    model.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign, assignment]
    return model, logged


def batch(n: int) -> Batch:
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return Batch(images, torch.full((n,), -1), torch.arange(n), Key.of(0, slots=torch.arange(n)))


def by_hand(model: SimSiam, images: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Projections and predictions of the two views, one network pass for each view."""
    z = [model.projector(model.encoder(model.view(images.images, images.key.fold("view", i)))) for i in range(2)]
    return z, [model.predictor(projection) for projection in z]


@pytest.mark.parametrize("backbone", ["small_nf", "small_w16"])
def test_the_step_is_the_symmetric_loss(backbone: str) -> None:
    model, logged = simsiam(backbone)
    images = batch(6)
    loss = model.training_step(images, 0)
    z, p = by_hand(model, images)
    assert not torch.allclose(*z)
    expected = (slow_negative_cosine(p[0], z[1]) + slow_negative_cosine(p[1], z[0])) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert float(logged["loss"]) == loss.item()
    spread = F.normalize(z[0], dim=1).std(0, correction=0).mean()
    assert float(logged["embedding_std"]) == pytest.approx(spread.item(), rel=1e-4)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_projections_are_held_still(stop_gradient: bool) -> None:
    model, _ = simsiam(norm=False, stop_gradient=stop_gradient)
    images = batch(6)
    parameters = list(model.parameters())
    own = torch.autograd.grad(model.training_step(images, 0), parameters)
    fixed = [z.detach() for z in by_hand(model, images)[0]]
    z, p = by_hand(model, images)
    targets = fixed if stop_gradient else z
    expected = torch.autograd.grad(
        (negative_cosine(p[0], targets[1]) + negative_cosine(p[1], targets[0])) / 2, parameters
    )
    other = torch.autograd.grad(negative_cosine(by_hand(model, images)[1][0], fixed[1]), parameters)
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(own[-2], other[-2], rtol=0.1), "one side alone is another gradient"


def test_heads_are_the_papers() -> None:
    """Batch norm on every layer of the projector, its output without affine; the predictor ends in a bare layer."""
    model, _ = simsiam()
    norms = [module for module in model.projector if isinstance(module, nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == [True, True, False]
    assert model.projector[-1] is norms[-1]
    assert [type(module) for module in model.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in (model.predictor[0], model.predictor[-1])] == [(4, 12), (12, 4)]
    free, _ = simsiam(norm=False)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in free.modules())


def test_the_predictors_rate_is_constant() -> None:
    model, _ = simsiam()
    model._trainer = SimpleNamespace(  # type: ignore[assignment]
        datamodule=SimpleNamespace(batch_size=8),
        accumulate_grad_batches=1,
        max_steps=10,
        gradient_clip_val=None,
        global_step=0,
        log_every_n_steps=0,
    )
    built = model.configure_optimizers()
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    model.training_step(batch(6), 0).backward()
    for _ in range(9):
        optimizer.step()
        schedule.step()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.predictor.parameters()} == {0.4}
    others = {rates[id(p)] for part in (model.encoder, model.projector) for p in part.parameters()}
    assert len(others) == 1
    assert others.pop() < 0.02


# Training ------------------------------------------------------------------------------------------------


def make(data: ImageData, backbone: str = "small_w16", **options: Any) -> SimSiam:
    return SimSiam(
        data.spec, Weak(), Optimization(lr=0.2, weight_decay=1e-4), backbone=backbone, hidden_dim=32, projection_dim=32,
        prediction_dim=8, knn_k=5, **options,
    )  # fmt: skip


def shipped(data: ImageData, *, stop_gradient: bool = True) -> SimSiam:
    """With the settings of `digits_simsiam.yaml`."""
    arguments = StageCommand.parse("fit", ["--config=digits_simsiam.yaml"]).tree()["model"]["init_args"]
    view, optimizer = SmallGreyView(**arguments.pop("view")["init_args"]), Optimization(**arguments.pop("optimizer"))
    return SimSiam(data.spec, view, optimizer, stop_gradient=stop_gradient, **arguments)


def collapsing(data: ImageData) -> SimSiam:
    return shipped(data, stop_gradient=False)


def many_digits() -> ImageData:
    return ImageData("digits", batch_size=256)


@pytest.mark.parametrize("make_model", [pytest.param(shipped, marks=pytest.mark.slow), collapsing])
def test_without_stop_gradient_the_log_soon_tells_of_a_collapse(
    make_model: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The paper's ablation (§4.1): batch norm keeps the projections' spread while their directions become few."""
    train(make_model, many_digits, tmp_path, 300, stop=Stop(31), log_every_n_steps=10, val_check_interval=1000)
    assert [line.split(": the")[0] for line in caplog.messages] == (
        ["features are collapsing: step 30"] if make_model is collapsing else []
    )


@pytest.mark.slow
def test_digits_are_learned(tmp_path: Path) -> None:
    usl(tmp_path, "fit", "--config", "digits_simsiam.yaml").done()
    metrics = json.loads((tmp_path / "runs" / "digits_simsiam" / "result.json").read_text())
    assert metrics["knn_accuracy"] >= 0.95
    assert metrics["feature_std"] > 0.5 / math.sqrt(512)
