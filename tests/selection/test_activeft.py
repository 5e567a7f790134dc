"""ActiveFT's loss against a loop, its optimisation, and the last step."""

import pytest
import torch
from real_features import NAMES, real_features

from usl_lightning.data.keys import permutation
from usl_lightning.selection.activeft import _optimise, activeft_loss, select_activeft


@pytest.mark.parametrize("balance", [1.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_equal_a_loop(name: str, balance: float) -> None:
    x = real_features(name, 60).double()
    centres = x[:7].clone().requires_grad_()
    losses = []
    for feature in x:
        nearest = int((centres @ feature).argmax())
        positive = (feature @ centres[nearest] / 0.07).exp()
        # As in the published code, the gradient flows to the feature's own centre alone.
        negatives = sum((centres[k].detach() @ centres[nearest] / 0.07).exp() for k in range(7))
        losses.append(-(positive / (positive + balance * negatives)).log())
    expected = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(expected, centres)
    loss = activeft_loss(x, centres, temperature=0.07, balance=balance)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, centres)[0], gradient)


def test_no_optimisation_gives_the_starting_images() -> None:
    x = real_features("digits", 300)
    assert select_activeft(x, 12, seed=4, iterations=0).tolist() == permutation(300, 4, "activeft")[:12].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_of_the_chosen(name: str) -> None:
    x = real_features(name, 300)
    start, end = (x[select_activeft(x, 12, seed=1, iterations=n)] for n in (0, 300))
    before, after = (float(activeft_loss(x, c, temperature=0.07)) for c in (start, end))
    assert after < before


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = real_features("digits", 300)
    whole = _optimise(x, x[:12], 0.07, 40, 1e-3, 1.0)
    uneven = [slice(0, 7), slice(7, 250), slice(250, 300)]
    monkeypatch.setattr("usl_lightning.selection.activeft.chunks", lambda *_: uneven)
    torch.testing.assert_close(_optimise(x, x[:12], 0.07, 40, 1e-3, 1.0), whole, rtol=1e-4, atol=1e-5)


def test_it_needs_no_gradient_mode_of_the_caller() -> None:
    with torch.no_grad():
        assert len(select_activeft(real_features("digits", 50), 5, iterations=2)) == 5
