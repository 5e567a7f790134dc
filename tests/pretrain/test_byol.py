"""BYOL's loss against another library and a loop; its target's schedule and step by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NegativeCosineSimilarity
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import BYOLView, Weak
from usl_lightning.pretrain.byol import BYOL, byol_loss, target_decay


def vectors(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, z = (torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    return p, z


@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_is_the_papers_equation(n: int, d: int, seed: int) -> None:
    """The squared distance of unit vectors, term by term."""
    p, z = vectors(n, d, seed)
    total = 0.0
    for a, b in zip(p.tolist(), z.tolist(), strict=True):
        a_norm, b_norm = (math.sqrt(sum(x * x for x in row)) for row in (a, b))
        total += sum((x / a_norm - y / b_norm) ** 2 for x, y in zip(a, b, strict=True))
    assert byol_loss(p, z).item() == pytest.approx(total / n, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(1, 3), (16, 8), (33, 256)])
def test_values_and_gradients_are_lightlys(n: int, d: int) -> None:
    (p, z), (q, y) = vectors(n, d, dtype=torch.float32), vectors(n, d, dtype=torch.float32)
    byol_loss(p, z).backward()
    (2 + 2 * NegativeCosineSimilarity()(q, y.detach())).backward()
    assert byol_loss(p, z).item() == pytest.approx((2 + 2 * NegativeCosineSimilarity()(q, y)).item(), abs=1e-6)
    torch.testing.assert_close(p.grad, q.grad)
    assert z.grad is None, "nothing flows into the target"


@pytest.mark.parametrize("step", [0, 1, 37, 99])
def test_the_decay_is_lightlys_schedule(step: int) -> None:
    """Their last step is the one before the end of ours."""
    assert target_decay(step, 100, 0.99) == pytest.approx(cosine_schedule(step, 101, 0.99, 1.0), abs=1e-12)
    assert target_decay(0, 100, 0.99) == pytest.approx(0.99)
    assert target_decay(100, 100, 0.99) == 1.0


def model(**options: object) -> BYOL:
    image = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b"), count=40)
    return BYOL(image, Weak(), Optimization(), backbone="small", hidden_dim=24, projection_dim=6, **options)  # type: ignore[arg-type]


def test_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    byol = model(norm=False, other_view=BYOLView(blur=0.0, solarize=1.0))
    monkeypatch.setattr(byol, "log_training", lambda *views, **values: None)
    rows = torch.arange(5)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.full((5,), -1), rows, Key.of(0, slots=rows))
    views = [v(images, batch.key.fold("view", i)) for i, v in enumerate((byol.view, byol.other_view))]
    byol.eval()  # batch norm of the encoder apart
    with torch.no_grad():
        loss = byol.training_step(batch, 0)
        online = [byol.projector(byol.encoder(view)) for view in views]
        target = [byol.target.module(view) for view in views]
        expected = sum(byol_loss(byol.predictor(online[i]), target[1 - i]) for i in range(2))
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)


def test_outputs_have_no_batch_norm() -> None:
    byol = model()
    for mlp in (byol.projector, byol.predictor):
        assert [type(layer) for layer in mlp] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert mlp[-1].bias is not None
    assert not any(parameter.requires_grad for parameter in byol.target.parameters())
