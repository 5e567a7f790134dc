"""Two processes train as one: the same batches, augmentations, losses and weights (`gloo`, on the CPU)."""

from pathlib import Path

import pytest
import torch
from runs import FIXMATCH, SIMCLR, kill, last_checkpoint, usl, write_labels

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
COMMON = ["--model.backbone", "small_nf", "--trainer.accelerator", "cpu", "--trainer.max_steps", "10"]
COMMON += ["--trainer.val_check_interval", "5", "--checkpoint.every_steps", "4"]
WORDS = {
    "simclr": [*SIMCLR, *COMMON, "--model.projection_norm", "false", "--model.optimizer.lr", "0.5"],
    "fixmatch": [*FIXMATCH, *COMMON, "--model.threshold", "0.11"],
}
"""Batch norm would see the images of one process alone; without it there is nothing the two may differ in."""


def series(run_dir: Path, name: str) -> list[float]:
    rows = (line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()[1:])
    return [float(value) for _, metric, value in rows if metric == name]


def assert_close_run(run_dir: Path, reference: Path) -> None:
    losses = series(reference, "loss")
    assert len(losses) == 10
    assert series(run_dir, "loss") == pytest.approx(losses, rel=1e-4)
    own, other = (last_checkpoint(path)["state_dict"] for path in (run_dir, reference))
    assert own.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()), msg=name)


def test_simclr(tmp_path: Path) -> None:
    """One process, two, and two that continue what one process began."""
    usl(tmp_path, *WORDS["simclr"], "--run_dir", "one").done()
    usl(tmp_path, *WORDS["simclr"], "--run_dir", "two", *TWO).done()
    assert_close_run(tmp_path / "two", tmp_path / "one")
    assert series(tmp_path / "two", "knn_accuracy") == pytest.approx(series(tmp_path / "one", "knn_accuracy"), abs=0.01)
    usl(tmp_path, *WORDS["simclr"], "--run_dir", "mixed", kill(6)).killed()
    usl(tmp_path, *WORDS["simclr"], "--run_dir", "mixed", "--ckpt_path", "last", *TWO).done()
    assert_close_run(tmp_path / "mixed", tmp_path / "one")


def test_fixmatch(tmp_path: Path) -> None:
    write_labels(tmp_path)
    usl(tmp_path, *WORDS["fixmatch"], "--run_dir", "one").done()
    usl(tmp_path, *WORDS["fixmatch"], "--run_dir", "two", *TWO).done()
    assert_close_run(tmp_path / "two", tmp_path / "one")
    masks = series(tmp_path / "one", "mask_rate")
    assert 0 < sum(masks) < 10, "the unlabelled loss must be at work, and the threshold too"
    assert series(tmp_path / "two", "mask_rate") == pytest.approx(masks)
    for name in ("test_accuracy", "test_accuracy_online"):
        assert series(tmp_path / "two", name) == pytest.approx(series(tmp_path / "one", name))


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    line = usl(tmp_path, *WORDS["simclr"], *TWO, "--data.batch_size", "33")
    assert "data.batch_size: 33 images cannot be divided over 2 processes; use 32 or 34" in line.err
    assert line.code == 2
    assert not (tmp_path / "runs/digits_simclr/checkpoints").exists()
