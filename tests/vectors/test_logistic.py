"""Many logistic regressions at once: each is scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.vectors.logistic import LinearHead, LogisticLearner, fit_logistic


def digits(n: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Unit rows and labels of the first digits of these classes."""
    x, y = load_digits(return_X_y=True)
    kept = np.nonzero(y < classes)[0][:n]
    x = x[kept] / np.linalg.norm(x[kept], axis=1, keepdims=True)
    return torch.from_numpy(x), torch.from_numpy(y[kept]).long()


def theirs(x: Tensor, y: Tensor, c: float, weights: Tensor) -> np.ndarray:
    """scikit-learn's probabilities of all rows."""
    model = LogisticRegression(C=c, max_iter=20_000, tol=1e-10)
    return model.fit(x.numpy(), y.numpy(), sample_weight=weights.numpy()).predict_proba(x.numpy())


@pytest.mark.parametrize("strength", [0.3, 30.0, 1000.0])
@pytest.mark.parametrize(("n", "dimensions"), [(40, 64), (300, 20)])
def test_each_problem_is_scikit_learns(strength: float, n: int, dimensions: int) -> None:
    x, y = digits(n)
    x = x[:, :dimensions]
    weights = torch.ones(3, n, dtype=torch.double)
    weights[1, ::3] = 0
    weights[2] = torch.linspace(0.1, 1, n)
    penalties = 1 / (strength * weights.sum(1))
    weight, bias = fit_logistic(x, y, weights, penalties, num_classes=10, tolerance=1e-6)
    for each in range(3):
        ours = (x @ weight[each].T + bias[each]).softmax(1).numpy()
        np.testing.assert_allclose(ours, theirs(x, y, strength, weights[each]), atol=2e-4)


def test_side_by_side_is_as_alone() -> None:
    x, y = digits(60)
    weights, penalties = torch.ones(4, 60), torch.tensor([1.0, 0.1, 0.01, 0.001])
    together = fit_logistic(x, y, weights, penalties, num_classes=10)[0]
    for each in range(4):
        alone = fit_logistic(x, y, weights[:1], penalties[each : each + 1], num_classes=10)[0]
        torch.testing.assert_close(together[each], alone[0], rtol=1e-3, atol=1e-4)


def test_a_class_without_a_row_gets_nothing() -> None:
    x, y = digits(50, classes=3)
    weights = torch.ones(2, 50)
    weights[1, y == 1] = 0
    weight, bias = fit_logistic(x, y, weights, torch.full((2,), 0.01), num_classes=4)
    assert bias[:, 3].tolist() == [-torch.inf] * 2
    assert bias[1, 1] == -torch.inf
    probabilities = (x @ weight[1].T + bias[1]).softmax(1)
    assert bool((probabilities[:, [1, 3]] == 0).all())
    assert float(probabilities[y == 0, 0].mean()) > 0.9


def test_equal_rows_leave_the_shares_of_the_classes() -> None:
    x, y = torch.ones(8, 5), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    learner = LogisticLearner(torch.nn.functional.normalize(x), torch.arange(8), y, 2, [30.0])
    probabilities = learner.scores(learner.head(0)).softmax(1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.75, 0.25]]).expand(8, 2), atol=1e-3, rtol=0)


def test_the_head_is_the_learner_and_can_be_loaded() -> None:
    x, y = digits(100)
    x, rows = x.float(), torch.arange(30)
    learner = LogisticLearner(x, rows, y[rows], 10, [3.0, 300.0])
    logits = learner.held_out(torch.ones(1, 30, dtype=torch.bool))
    assert logits.shape == (2, 1, 30, 10)
    head = learner.head(1)
    torch.testing.assert_close(head(x[rows]).softmax(1), logits[1, 0].softmax(1), atol=0.02, rtol=0)
    again = LinearHead.like(head.state_dict())
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(x), head(x))


@pytest.mark.parametrize(
    ("weights", "penalty", "part"),
    [([0.0, 0.0], 1.0, "weights"), ([1.0, -1.0], 1.0, "weights"), ([1.0, 2.0], 1.0, "weights"), ([1, 1], 0.0, "pen")],
)
def test_out_of_range(weights: list[float], penalty: float, part: str) -> None:
    with pytest.raises(UslError, match=part):
        fit_logistic(
            torch.eye(2), torch.tensor([0, 1]), torch.tensor([weights]), torch.tensor([penalty]), num_classes=2
        )


def test_features_that_are_not_finite() -> None:
    x = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    with pytest.raises(UslError, match="row 0"):
        fit_logistic(x, torch.tensor([0, 1]), torch.ones(1, 2), torch.ones(1), num_classes=2)
