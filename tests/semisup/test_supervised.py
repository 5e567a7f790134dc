"""Supervised training: its step by hand, the data it takes, and the oracle that takes every label."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData, LabelledData, SemiSupervisedData
from usl_lightning.data.views import Weak
from usl_lightning.semisup.supervised import Supervised

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def test_the_step_is_the_mean_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Supervised(GREY, Weak(), Optimization(), "small_nf")
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    images = torch.randint(0, 256, (4, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1, 2, 1]), torch.arange(4), Key.of(0, slots=torch.arange(4)))
    loss = model.training_step(batch, 0)
    loss.backward()

    views = model.view(images, batch.key.fold("view"))
    total, gradient = 0.0, torch.zeros(3)
    for view, label in zip(views, batch.labels.tolist(), strict=True):
        row = model.model(view[None])[0].tolist()
        exponentials = [math.exp(x) for x in row]
        probabilities = torch.tensor(exponentials) / sum(exponentials)
        total -= math.log(probabilities[label]) / 4
        gradient += (probabilities - torch.eye(3)[label]) / 4
    assert loss.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(model.model.head.bias.grad, gradient, rtol=1e-5, atol=1e-6)
    assert logged["loss"].item() == loss.item()


# Data ----------------------------------------------------------------------------------------------------

LABELS = np.array([0, 1, -1, 2, 0, -1, 1, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images, six with a label, and an index of two with other labels than theirs."""
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=LABELS, classes=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "bare.npz", images=images)
    (tmp_path / "labels.json").write_text(json.dumps([0, 3]))
    return tmp_path


def drawn(data: ImageData, steps: int = 8) -> list[tuple[int, int]]:
    """Images and labels of the first training batches."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0,
        world_size=1,
        global_step=0,
        accumulate_grad_batches=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.setup("fit")
    batches = iter(data.train_dataloader())
    first = [next(batches) for _ in range(steps)]
    return [pair for b in first for pair in zip(b.indices.tolist(), b.labels.tolist(), strict=True)]


def test_only_the_indexs_images_are_drawn(folder: Path) -> None:
    data = LabelledData(str(folder / "labels.json"), dataset="arrays", dir=str(folder / "set.npz"), batch_size=2)
    assert drawn(data) == drawn(data)
    assert sorted(drawn(data)) == [(0, 0)] * 8 + [(3, 2)] * 8


def test_the_labelled_images_are_those_of_semi_supervised_training(folder: Path) -> None:
    """So that the baseline differs from the method in the unlabelled images alone."""
    options: dict[str, Any] = {"dataset": "arrays", "dir": str(folder / "set.npz"), "batch_size": 3, "seed": 5}
    alone = LabelledData(str(folder / "labels.json"), **options)
    both = SemiSupervisedData(str(folder / "labels.json"), **options)
    pairs = drawn(alone)
    both.trainer = alone.trainer
    both.setup("fit")
    batches = iter(both.train_dataloader())
    theirs = [next(batches).labelled for _ in range(8)]
    assert pairs == [pair for b in theirs for pair in zip(b.indices.tolist(), b.labels.tolist(), strict=True)]


def test_the_oracle_takes_every_label_there_is(folder: Path) -> None:
    data = LabelledData(oracle_labels=True, dataset="arrays", dir=str(folder / "set.npz"), batch_size=3)
    known = [(i, label) for i, label in enumerate(LABELS.tolist()) if label >= 0]
    assert sorted(set(drawn(data))) == known
    assert data.index.method == {"name": "oracle"}
    assert data.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oracle_labels": True, "labels": "labels.json"}, "data.oracle_labels: true takes every label .* leave out"),
        ({}, "data.labels: expected a label index"),
        ({"oracle_labels": True, "dir": "bare.npz"}, "data.oracle_labels: the data set has no labels"),
    ],
)
def test_mistakes_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    options = {"dir": "set.npz", **options}
    options |= {name: str(folder / options[name]) for name in ("dir", "labels") if name in options}
    with pytest.raises(UslError, match=message):
        _ = LabelledData(dataset="arrays", **options).index
