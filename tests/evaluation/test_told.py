"""What a classifier says of images: the most unsure, each class, labels that look wrong; against slow formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch

from usl_lightning.evaluation.told import HeldOut, Told

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def told() -> Told:
    generator = torch.Generator().manual_seed(3)
    probabilities = (3 * torch.randn(40, 3, generator=generator)).softmax(1)
    rows = torch.tensor([3, 8, 9, 12, 20, 21, 30, 33, 38])
    given = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    held = torch.full((9, 3), 0.1)
    held[torch.arange(9), given] = 0.8
    held[4] = torch.tensor([0.1, 0.2, 0.7])  # looks like a cat, no more than cats do on average
    held[5] = torch.tensor([0.05, 0.05, 0.9])  # certainly does
    held[0] = torch.tensor([0.3, 0.6, 0.1])  # rather a bee than bees are on average
    return Told.of(probabilities, CLASSES, HeldOut(rows, given, held))


def test_labels_that_look_wrong(told: Told) -> None:
    rows, given, held = told.held_out
    usual = [np.mean([float(p[c]) for p, g in zip(held, given, strict=True) if g == c]) for c in range(3)]
    expected = []
    for row, label, p in zip(rows.tolist(), given.tolist(), held.tolist(), strict=True):
        sure = [c for c in range(3) if p[c] >= usual[c]]
        rather = max(sure, key=lambda c: p[c]) if sure else label
        if rather != label:
            expected.append((p[rather] - p[label], row, label, rather))
    found = [(each.row, each.given, each.rather) for each in told.doubts()]
    assert found == [each[1:] for each in sorted(expected, reverse=True)]
    assert found == [(21, 1, 2), (3, 0, 1)]
    assert [each.probability for each in told.doubts()] == pytest.approx([0.9, 0.6])


def test_the_most_unsure_have_no_label(told: Told) -> None:
    order = np.argsort(told.margins.numpy(), kind="stable").tolist()
    unlabelled = [row for row in order if row not in told.held_out.rows.tolist()]
    assert told.unsure(5) == unlabelled[:5]
    assert told.unsure(1000) == unlabelled


def test_images_of_a_class(told: Told) -> None:
    for label in range(3):
        rows = [row for row in range(40) if told.labels[row] == label]
        count, shown = told.of_class(label, 4)
        assert count == len(rows)
        sorted_rows = sorted(rows, key=lambda row: -float(told.probabilities[row]))
        assert (shown[0], shown[-1], len(shown)) == (sorted_rows[0], sorted_rows[-1], 4)
        assert sorted(told.of_class(label, 1000)[1]) == rows
    assert told.of_class(1, 1)[1] == told.of_class(1, 4)[1][:1]


def test_written_and_read(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    told.write(path)
    read = Told.read(path)
    assert read is not None
    assert read.classes == CLASSES
    assert torch.equal(read.labels, told.labels)
    assert torch.equal(read.margins, told.margins)
    assert read.doubts() == told.doubts()
    path.write_bytes(path.read_bytes()[:200])
    assert Told.read(path) is None
    assert Told.read(tmp_path / "none.npz") is None
