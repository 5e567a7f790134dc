"""Two processes train as one: the same batches, augmentations, losses and weights (`gloo`, on the CPU)."""

from pathlib import Path

import pytest
import torch
from runs import FIXMATCH, SIMCLR, Outcome, kill, last_checkpoint, together, usl, write_labels

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each method in one process and in two, and one that two processes continue."""
    folder = tmp_path_factory.mktemp("processes")
    write_labels(folder)

    def run(method: str, name: str, *more: str) -> Outcome:
        return usl(folder, *WORDS[method], "--run_dir", f"{method}/{name}", *more)

    together(lambda: run("simclr", "one").done(), lambda: run("fixmatch", "one").done())
    together(lambda: run("simclr", "two", *TWO).done(), lambda: run("simclr", "mixed", kill(6)).killed())
    together(
        lambda: run("fixmatch", "two", *TWO).done(),
        lambda: run("simclr", "mixed", "--ckpt_path", "last", *TWO).done(),
    )
    return folder


@pytest.mark.parametrize("method", ["simclr", "fixmatch"])
def test_two_processes_train_as_one(folder: Path, method: str) -> None:
    assert_close_run(folder / method / "two", folder / method / "one")


def test_two_processes_continue_what_one_began(folder: Path) -> None:
    assert_close_run(folder / "simclr/mixed", folder / "simclr/one")


def test_two_processes_measure_as_one(folder: Path) -> None:
    one, two = folder / "simclr/one", folder / "simclr/two"
    assert series(two, "knn_accuracy") == pytest.approx(series(one, "knn_accuracy"), abs=0.01)
    one, two = folder / "fixmatch/one", folder / "fixmatch/two"
    masks = series(one, "mask_rate")
    assert 0 < sum(masks) < 10, "the unlabelled loss must be at work, and the threshold too"
    for name in ("mask_rate", "test_accuracy", "test_accuracy_online"):
        assert series(two, name) == pytest.approx(series(one, name))


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    refused = usl(tmp_path, *WORDS["simclr"], *TWO, "--data.batch_size", "33")
    assert refused.code == 2
    assert "data.batch_size: 33 images cannot be divided over 2 processes; use 32 or 34" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "runs/digits_simclr/checkpoints").exists()
