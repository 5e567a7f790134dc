"""VICReg's terms against another library, loops and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import VICRegLoss
from torch import Tensor, nn

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.pretrain.vicreg import EPSILON, VICReg, covariance_loss, variance_loss


def embeddings(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_are_the_papers_equations(n: int, d: int, seed: int) -> None:
    z = embeddings(n, d, seed)
    columns = z.detach().T.tolist()
    means = [sum(column) / n for column in columns]

    def covariance(i: int, j: int) -> float:
        return sum((a - means[i]) * (b - means[j]) for a, b in zip(columns[i], columns[j], strict=True)) / (n - 1)

    hinges = [max(0.0, 1 - math.sqrt(covariance(j, j) + EPSILON)) for j in range(d)]
    assert variance_loss(z).item() == pytest.approx(sum(hinges) / d, rel=1e-9, abs=1e-12)
    squares = sum(covariance(i, j) ** 2 for i in range(d) for j in range(d) if i != j)
    assert covariance_loss(z).item() == pytest.approx(squares / d, rel=1e-9, abs=1e-12)


def model(**options: float) -> VICReg:
    image = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b"), count=40)
    return VICReg(image, Weak(), Optimization(), backbone="small", hidden_dim=24, projection_dim=6, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.5, 3.0)])
def test_a_step_is_lightlys_loss(weights: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of the embeddings; deviations about 1, where the hinge bends."""
    vicreg = model(invariance=weights[0], variance=weights[1], covariance=weights[2])
    monkeypatch.setattr(vicreg, "log_training", lambda *views, **values: None)
    made = [embeddings(8, 6, seed).detach().float().requires_grad_() for seed in range(2)]
    answers = iter(made)
    vicreg.expander = nn.Module()
    monkeypatch.setattr(vicreg.expander, "forward", lambda features: next(answers), raising=False)
    rows = torch.arange(8)
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loss = vicreg.training_step(Batch(images, torch.full((8,), -1), rows, Key.of(0, slots=rows)), 0)
    loss.backward()
    copies = [z.detach().clone().requires_grad_() for z in made]
    expected = VICRegLoss(lambda_param=weights[0], mu_param=weights[1], nu_param=weights[2])(*copies)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for own, other in zip(made, copies, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_what_stands_still_costs_most_and_what_is_apart_nothing() -> None:
    assert variance_loss(torch.ones(5, 3)).item() == pytest.approx(1 - math.sqrt(EPSILON))
    assert variance_loss(torch.tensor([[2.0, -2.0], [-2.0, 2.0]])).item() == 0
    assert covariance_loss(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).item() == 0


def test_the_expander_has_three_layers_and_no_norm_at_its_end() -> None:
    layers = [type(layer) for layer in model().expander]
    assert layers.count(nn.Linear) == 3
    assert layers[-1] is nn.Linear
