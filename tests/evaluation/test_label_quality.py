import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.evaluation.label_quality import label_quality

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def test_counts_and_balance() -> None:
    quality = label_quality(LABELS, torch.tensor([0, 1, 3]), num_classes=4)
    assert quality["classes_covered"] == 2
    assert quality["class_counts"] == [2, 1, 0, 0]
    entropy = math.log(3) - 2 / 3 * math.log(2)
    assert quality["balance"] == pytest.approx(entropy / math.log(4))
    assert quality["propagated_accuracy"] is None
    assert quality["mean_density"] is None


@pytest.mark.parametrize(("selected", "balance"), [([0, 3, 5], 1.0), ([0, 1, 2], 0.0)])
def test_extremes_of_balance(selected: list[int], balance: float) -> None:
    assert label_quality(LABELS, torch.tensor(selected), num_classes=3)["balance"] == pytest.approx(balance)


def test_distances_in_closed_form() -> None:
    # Unit vectors at 0, 60, 90 and 180 degrees; scale must not matter. |a - b| = 2 sin(angle / 2).
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0], dtype=torch.float64).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    labels = torch.tensor([0, 0, 1, 1])
    quality = label_quality(labels, torch.tensor([0, 3]), x, num_classes=2, k=2)
    # Squared: from 0 degrees 1, 2, 4; from 180 degrees 2, 3, 4. Two nearest others: 1.5 and 2.5.
    assert quality["mean_density"] == pytest.approx((1 / 1.5 + 1 / 2.5) / 2)
    assert quality["spread"] == pytest.approx(2.0)
    assert quality["coverage_distance"] == pytest.approx((0 + 1 + math.sqrt(2) + 0) / 4)
    one = label_quality(labels, torch.tensor([1]), x, num_classes=2)
    assert one["spread"] is None
    # 60 degrees of class 0 is nearest to all: right for the first, wrong for the other two.
    assert one["propagated_accuracy"] == pytest.approx(1 / 3)


def test_propagated_accuracy_equals_a_loop_on_digits() -> None:
    rows, y = load_digits(return_X_y=True)
    x, labels = torch.from_numpy(rows), torch.from_numpy(y)
    hidden = labels.clone()
    hidden[1000:] = -1
    selected = torch.arange(0, 40)
    unit = x / x.norm(dim=1, keepdim=True)
    right = [labels[selected[(unit[selected] @ unit[i]).argmax()]] == labels[i] for i in range(40, 1000)]
    quality = label_quality(hidden, selected, x, num_classes=10)
    assert quality["propagated_accuracy"] == pytest.approx(sum(map(int, right)) / 960)


def test_everything_chosen_and_nothing_known() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    quality = label_quality(LABELS, torch.arange(6), x, num_classes=3)
    assert quality["propagated_accuracy"] is None
    assert quality["coverage_distance"] == 0
    blind = label_quality(torch.full((6,), -1), torch.arange(3), x, num_classes=3)
    assert (blind["classes_covered"], blind["balance"], blind["propagated_accuracy"]) == (0, None, None)
    assert blind["spread"] is not None


@pytest.mark.parametrize(
    ("selected", "features", "num_classes", "message"),
    [
        ([0, 0], None, 3, "selected: expected distinct indices from 0 to 5"),
        ([6], None, 3, "selected"),
        ([], None, 3, "at least one"),
        ([0], None, 2, "labels: expected -1"),
        ([0], torch.ones(5, 2), 3, "features: 5 rows for 6 labels; expected as many"),
    ],
)
def test_bad_input(selected: list[int], features: Tensor | None, num_classes: int, message: str) -> None:
    with pytest.raises(UslError, match=message):
        label_quality(LABELS, torch.tensor(selected, dtype=torch.int64), features, num_classes=num_classes)
