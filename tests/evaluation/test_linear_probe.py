"""The linear probe against scikit-learn, and its subsets of labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import derive_seed, permutation
from usl_lightning.evaluation import linear_probe
from usl_lightning.evaluation.linear_probe import balanced_subset, fit_by_sgd, fit_logistic_regression, probe_accuracy


def digits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Pixels, some of them constant, and labels."""
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).to(dtype), torch.from_numpy(y)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_weights_are_scikit_learns(penalty: float) -> None:
    x, y = digits()
    x, y = x[:600] / 16, y[:600]
    weight, bias = fit_logistic_regression(x, y, num_classes=10, penalty=penalty, iterations=2000)
    other = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-7, max_iter=10_000).fit(x.numpy(), y.numpy())
    # Adding one number to all biases changes nothing, so they are compared up to that.
    torch.testing.assert_close(weight, torch.from_numpy(other.coef_), rtol=1e-3, atol=2e-3)
    theirs = torch.from_numpy(other.intercept_)
    torch.testing.assert_close(bias - bias.mean(), theirs - theirs.mean(), rtol=1e-3, atol=2e-3)


def test_sgd_is_torchs() -> None:
    """Step by step: its optimizer, schedule and loss."""
    x, y = digits()
    x, y = x[:600] / 16, y[:600]
    weight, bias = fit_by_sgd(x, y, num_classes=10, seed=5, epochs=4)
    linear = torch.nn.Linear(64, 10).double()
    random = torch.Generator().manual_seed(derive_seed(5, "probe"))
    with torch.no_grad():
        linear.weight.copy_(0.01 * torch.randn(10, 64, generator=random))
        linear.bias.zero_()
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for epoch in range(4):
        for rows in permutation(600, 5, "probe", epoch).split(256):
            optimizer.zero_grad()
            F.cross_entropy(linear(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    torch.testing.assert_close(weight, linear.weight.detach())
    torch.testing.assert_close(bias, linear.bias.detach())


def test_accuracy_is_that_of_standardised_features() -> None:
    x, y = digits(torch.float32)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (1000 * 0.01), max_iter=1000))
    theirs.fit(x[:1000].numpy(), y[:1000].numpy())
    expected = theirs.score(x[1000:].numpy(), y[1000:].numpy())
    found = probe_accuracy(x[:1000], y[:1000], x[1000:], y[1000:], num_classes=10)
    assert found == pytest.approx(expected, abs=2 / 797)
    # Standardised features do not know their scale and offset.
    scale, offset = torch.logspace(-2, 2, 64), torch.linspace(-5, 5, 64)
    moved = [part * scale + offset for part in (x[:1000], x[1000:])]
    assert probe_accuracy(moved[0], y[:1000], moved[1], y[1000:], num_classes=10) == pytest.approx(found, abs=3 / 797)


def test_rows_in_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits()
    whole = fit_logistic_regression(x[:100], y[:100], num_classes=10, penalty=0.1)
    monkeypatch.setattr(linear_probe, "_CHUNK", 33)
    torch.testing.assert_close(fit_logistic_regression(x[:100], y[:100], num_classes=10, penalty=0.1), whole)


def test_unknown_labels_neither_teach_nor_count() -> None:
    x, y = digits(torch.float32)
    hidden = torch.where(torch.arange(len(y)) % 3 == 0, -1, y)
    known = hidden >= 0
    found = probe_accuracy(x, hidden, x, hidden, num_classes=10)
    assert found == probe_accuracy(x[known], y[known], x[known], y[known], num_classes=10)
    assert math.isnan(probe_accuracy(x, y, x, torch.full_like(y, -1), num_classes=10))


def test_it_works_in_inference_mode_and_half_precision() -> None:
    x, y = digits(torch.float16)
    with torch.inference_mode():
        features = x.clone()
    found = probe_accuracy(features, y, x, y, num_classes=10)
    assert found == pytest.approx(probe_accuracy(x.float(), y, x.float(), y, num_classes=10), abs=1e-3)
    assert found > 0.97


def test_bad_input() -> None:
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UslError, match="none is known"):
        probe_accuracy(x, torch.full_like(y, -1), x, y, num_classes=3)
    with pytest.raises(UslError, match="expected one from 0 to 1 for each of 4 rows"):
        fit_logistic_regression(x, y, num_classes=2, penalty=0.1)
    with pytest.raises(UslError, match="NaN or infinite"):
        fit_logistic_regression(x / 0, y, num_classes=3, penalty=0.1)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.integers(0, 40), st.integers(0, 3))
def test_subsets_are_as_balanced_as_can_be(labels: list[int], count: int, seed: int) -> None:
    y = torch.tensor(labels)
    chosen = balanced_subset(y, count, seed=seed).tolist()
    known = sum(label >= 0 for label in labels)
    assert len(chosen) == len(set(chosen)) == min(count, known)
    assert chosen == sorted(chosen)
    taken = [labels[i] for i in chosen]
    assert -1 not in taken
    for a in set(labels) - {-1}:
        for b in set(labels) - {-1}:
            # A class falls behind another by two only if all of it is taken.
            assert taken.count(a) >= taken.count(b) - 1 or taken.count(a) == labels.count(a)


def test_subsets_are_a_function_of_the_seed() -> None:
    _, y = digits()
    assert torch.equal(balanced_subset(y, 100, seed=1), balanced_subset(y, 100, seed=1))
    assert not torch.equal(balanced_subset(y, 100, seed=1), balanced_subset(y, 100, seed=2))
    # Not the first of each class.
    assert balanced_subset(y, 100, seed=1).max() > 1000
