"""NT-Xent against another library and a loop; SimCLR's step by hand; the kNN monitor."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.pretrain.simclr import SimCLR, nt_xent

SHAPES = st.tuples(st.integers(2, 9), st.integers(1, 8))
TEMPERATURES = st.floats(0.05, 2.0)


def projections(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return z1, z2


def slow_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, term by term."""
    z = torch.cat([z1, z2]).tolist()
    n = len(z1)

    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        negatives = sum(math.exp(similarity(z[i], z[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity(z[i], z[j]) / temperature) / negatives)
    return total / (2 * n)


@given(SHAPES, TEMPERATURES, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_is_the_papers_equation(shape: tuple[int, int], temperature: float, seed: int) -> None:
    z1, z2 = projections(*shape, seed)
    assert nt_xent(z1, z2, temperature=temperature).item() == pytest.approx(slow_nt_xent(z1, z2, temperature), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (16, 8), (33, 64)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_values_and_gradients_are_lightlys(n: int, d: int, temperature: float) -> None:
    ours, theirs = projections(n, d, dtype=torch.float32), projections(n, d, dtype=torch.float32)
    loss, other = nt_xent(*ours, temperature=temperature), NTXentLoss(temperature)(*theirs)
    loss.backward()
    other.backward()
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.5), projections(4, 3))


@given(SHAPES, st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_length_order_and_sides_do_not_matter(shape: tuple[int, int], scale: float, seed: int) -> None:
    z1, z2 = (z.detach() for z in projections(*shape, seed))
    loss = nt_xent(z1, z2, temperature=0.5)
    torch.testing.assert_close(nt_xent(z1 * scale, z2, temperature=0.5), loss)
    torch.testing.assert_close(nt_xent(z2, z1, temperature=0.5), loss)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(nt_xent(z1[order], z2[order], temperature=0.5), loss)


def test_closed_forms() -> None:
    one = torch.ones(4, 3)
    assert nt_xent(one, one, temperature=0.3).item() == pytest.approx(math.log(7)), "collapsed: all 2n - 1 alike"
    eye = torch.eye(5)
    perfect = math.log(1 + 8 * math.exp(-1 / 0.5))
    assert nt_xent(eye, eye, temperature=0.5).item() == pytest.approx(perfect), "pairs alike, others orthogonal"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    z1, z2 = projections(8, 16, dtype=torch.float32)
    z1, z2 = z1.detach().to(dtype), z2.detach().to(dtype)
    loss = nt_xent(z1, z2, temperature=0.01)  # e^100 overflows half precision
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z1.float(), z2.float(), temperature=0.01))


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def simclr(monkeypatch: pytest.MonkeyPatch) -> tuple[SimCLR, dict[str, Any]]:
    """A network without norms, and what it logs."""
    torch.manual_seed(0)
    model = SimCLR(GREY, Weak(), Optimization(), backbone="small_nf", temperature=0.2, projection_norm=False, knn_k=3)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(sanity_checking=False, global_step=0, log_every_n_steps=0))
    return model, logged


def batch(n: int, labels: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels or [-1] * n), torch.arange(n), Key.of(0, slots=torch.arange(n)))


def test_the_step_is_the_loss_of_two_independent_views(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = simclr(monkeypatch)
    images = batch(6)
    loss = model.training_step(images, 0)
    views = [model.view(images.images, images.key.fold("view", i)) for i in range(2)]
    assert not torch.equal(*views)
    projected = [torch.cat([model.projector(model.encoder(image[None])) for image in view]) for view in views]
    assert loss.item() == pytest.approx(slow_nt_xent(*projected, 0.2), rel=1e-5)
    assert loss.requires_grad
    assert float(logged["loss"]) == loss.item()


def test_the_projector_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = simclr(monkeypatch)
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    prefix = checkpoint["encoder"]["prefixes"]["online"]
    stored = {name.removeprefix(prefix) for name in model.state_dict() if name.startswith(prefix)}
    assert stored == set(model.encoder.state_dict())


@pytest.mark.parametrize("parts", [1, 3])
def test_monitor_tells_copies_of_the_training_images(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Test images that are training images have the right neighbour first, whatever the features."""
    model, logged = simclr(monkeypatch)
    model.knn_k = 1
    model.eval()
    bank = batch(12, [i % 3 for i in range(12)])
    for rows in torch.arange(12).chunk(parts):
        part = Batch(bank.images[rows], bank.labels[rows], rows, bank.key[rows])
        model.validation_step(part, 0, 0)
    test = Batch(bank.images[:4], torch.tensor([0, 1, 2, 1]), torch.arange(4), bank.key[:4])
    with torch.no_grad():
        model.validation_step(test, 0, 1)
        model.on_validation_epoch_end()
    assert logged["knn_accuracy"] == pytest.approx(3 / 4)
    assert 0 < logged["feature_std"] < 1 / math.sqrt(model.encoder.feature_dim) * 1.01
    assert not model._passes


@pytest.mark.parametrize("unknown", [0, 1])
def test_monitor_is_silent_without_labels(monkeypatch: pytest.MonkeyPatch, unknown: int) -> None:
    """An accuracy against labels that are not known would be a lie."""
    model, logged = simclr(monkeypatch)
    with torch.no_grad():
        for number in range(2):
            model.validation_step(batch(4, [-1] * 4 if number == unknown else [0, 1, 2, 0]), 0, number)
        model.on_validation_epoch_end()
    assert logged.keys() == {"feature_std", "rankme"}


def test_autocast_does_not_blur_the_loss() -> None:
    z1, z2 = projections(64, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(z1.bfloat16(), z2.bfloat16(), temperature=0.1)
    outside = nt_xent(z1.bfloat16().float(), z2.bfloat16().float(), temperature=0.1)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
