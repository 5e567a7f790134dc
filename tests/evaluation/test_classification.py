"""Scores against scikit-learn, torchmetrics and loops over images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from usl_lightning.evaluation.classification import (
    BINS,
    Scores,
    Tally,
    calibration_error,
    confidence_bins,
    confident_counts,
    scores_table,
    write_scores,
)


def predictions(n: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(0, classes, (n,), generator=generator)


def tallied(logits: Tensor, labels: Tensor, parts: int = 1) -> Scores:
    tally = Tally(logits.shape[1])
    for rows in torch.arange(len(labels)).chunk(parts):
        tally.update(logits[rows], labels[rows])
    scores = tally.scores()
    assert scores is not None
    return scores


@given(st.integers(1, 60), st.integers(2, 7), st.integers(1, 4), st.integers(0, 1000))
def test_scores_are_scikit_learns(n: int, classes: int, parts: int, seed: int) -> None:
    logits, labels = predictions(n, classes, seed)
    scores = tallied(logits, labels, parts)
    truth, predicted, names = labels.numpy(), logits.argmax(1).numpy(), list(range(classes))
    assert scores.images == n
    assert scores.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert scores.confusion.tolist() == confusion_matrix(truth, predicted, labels=names).tolist()
    recalls = recall_score(truth, predicted, labels=names, average=None, zero_division=math.nan)
    assert [math.nan if a is None else a for a in scores.class_accuracy] == pytest.approx(recalls, nan_ok=True)


@given(st.integers(1, 80), st.integers(2, 7), st.integers(1, 4), st.integers(0, 1000))
def test_the_calibration_error_is_torchmetrics(n: int, classes: int, parts: int, seed: int) -> None:
    logits, labels = predictions(n, classes, seed)
    expected = multiclass_calibration_error(logits.softmax(1), labels, classes, n_bins=BINS, norm="l1")
    assert tallied(logits, labels, parts).calibration_error == pytest.approx(float(expected), abs=1e-5)


def test_the_calibration_error_image_by_image() -> None:
    logits, labels = predictions(500, 4, 3)
    members: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        interval = next(m for m in range(BINS) if m / BINS < confidence <= (m + 1) / BINS)
        members.setdefault(interval, []).append((confidence, row.index(confidence) == label))
    error = 0.0
    for own in members.values():
        accuracy, confidence = (sum(column) / len(own) for column in zip(*own, strict=True))
        error += len(own) / 500 * abs(accuracy - confidence)
    assert len(members) > 8
    assert tallied(logits, labels).calibration_error == pytest.approx(error, abs=1e-9)


def test_bins_are_closed_above() -> None:
    edges = torch.tensor([0.0, 1 / 15, 0.07, 0.2, 1.0], dtype=torch.double)
    assert confidence_bins(edges).tolist() == [0, 0, 1, 2, 14]


def test_certainty_that_is_right_or_wrong() -> None:
    certain = 100 * torch.eye(3)
    assert tallied(certain, torch.arange(3)).calibration_error == pytest.approx(0, abs=1e-12)
    assert tallied(certain, torch.tensor([1, 2, 0])).calibration_error == pytest.approx(1)
    assert calibration_error(torch.tensor([[4, 3, 3.0], [6, 0, 3.0]])) == pytest.approx(0.3)


def test_images_without_a_label_do_not_count() -> None:
    logits, labels = predictions(40, 3, 0)
    some = torch.cat([labels, torch.full((9,), -1)])
    more = tallied(torch.cat([logits, predictions(9, 3, 1)[0]]), some)
    assert more.as_dict() == tallied(logits, labels).as_dict()
    assert torch.equal(more.confusion, tallied(logits, labels).confusion)
    tally = Tally(3)
    tally.update(logits, torch.full((40,), -1))
    assert tally.scores() is None


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 100))
def test_confident_counts_are_the_loops(n: int, threshold: float, seed: int) -> None:
    logits, labels = predictions(n, 3, seed)
    labels[::3] = -1
    expected = [0, 0, 0, 0]
    for row, label in zip(logits.softmax(1), labels.tolist(), strict=True):
        confident = float(row.max()) >= threshold
        known = confident and label >= 0
        right = known and int(row.argmax()) == label
        for i, counts in enumerate((True, confident, known, right)):
            expected[i] += counts
    assert confident_counts(logits, labels, threshold=threshold).tolist() == expected


def test_the_table_is_aligned() -> None:
    logits = 9 * torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    scores = tallied(logits, torch.tensor([0, 0, 1, 0]))
    assert scores_table({"EMA": scores, "online": scores}, ("cat", "dog", "axolotl")).splitlines() == [
        "4 images                               EMA  online",
        "accuracy                            0.7500  0.7500",
        f"calibration error, 15 bins          {scores.calibration_error:.4f}  {scores.calibration_error:.4f}",
        "",
        "accuracy of class           images     EMA  online",
        "cat                              3  0.6667  0.6667",
        "dog                              1  1.0000  1.0000",
        "axolotl                          0       -       -",
        "",
        "EMA: true \\ taken for  cat  dog  axolotl",
        "cat                      2    1        0",
        "dog                      0    1        0",
        "axolotl                  0    0        0",
    ]


@pytest.mark.parametrize("classes", [100, 101])
def test_the_file_tells_everything_and_stays_small(classes: int, tmp_path: Path) -> None:
    scores = {name: tallied(*predictions(300, classes, seed)) for seed, name in enumerate(("ema", "online"))}
    names = [f"c{i}" for i in range(classes)]
    write_scores(tmp_path / "evaluation.json", {"dataset": "pets"}, scores, names)
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert (told["dataset"], told["classes"], told["calibration_bins"]) == ("pets", names, BINS)
    for name, own in scores.items():
        confusion = told[name]["confusion"]
        assert isinstance(confusion, str) == (classes > 100)
        matrix = np.load(tmp_path / confusion) if isinstance(confusion, str) else confusion
        assert np.array_equal(matrix, own.confusion.numpy())
        assert told[name]["accuracy"] == pytest.approx(own.accuracy)
        assert told[name]["class_accuracy"] == pytest.approx(list(own.class_accuracy))


def test_of_many_classes_the_worst_are_shown() -> None:
    labels = torch.arange(50)
    logits = 9 * torch.eye(50)[torch.where(labels % 5 == 1, 0, labels)]
    table = scores_table({"EMA": tallied(logits, labels)}, [f"c{i}" for i in range(50)])
    assert "(20 of 50 classes, the least accurate)" in table
    for i in range(1, 50, 5):
        assert f"\nc{i} " in table
    assert "taken for" not in table
