"""Several processes begin, are stopped, lose one of them and go on (`gloo`, on the CPU).

That two train as one is asked of every method in `test_methods.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from runs import SIMCLR, Outcome, kill, last_checkpoint, together, usl

pytestmark = pytest.mark.slow

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
COMMON = ["--model.backbone", "small_nf", "--trainer.accelerator", "cpu", "--trainer.max_steps", "10"]
COMMON += ["--trainer.val_check_interval", "5", "--checkpoint.every_steps", "4"]
WORDS = [*SIMCLR, *COMMON, "--model.projection_norm", "false", "--model.optimizer.lr", "0.5"]
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
    """`one`, a run of one process; `mixed`, which two continue."""
    folder = tmp_path_factory.mktemp("processes")

    def run(name: str, *more: str) -> Outcome:
        return usl(folder, *WORDS, "--run_dir", f"simclr/{name}", *more)

    together(lambda: run("one").done(), lambda: run("mixed", kill(6)).killed())
    run("mixed", "--ckpt_path", "last", *TWO).done()
    return folder


def test_two_processes_continue_what_one_began(folder: Path) -> None:
    assert_close_run(folder / "simclr/mixed", folder / "simclr/one")


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    refused = usl(tmp_path, *WORDS, *TWO, "--data.batch_size", "33")
    assert refused.code == 2
    assert "data.batch_size: 33 images cannot be divided over 2 processes; use 32 or 34" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "runs/digits_simclr/checkpoints").exists()


def test_a_killed_process_ends_the_others_and_the_run_goes_on(folder: Path) -> None:
    words = [*WORDS, *TWO, "--run_dir", "simclr/lost"]
    line = usl(folder, *words, kill(6, rank=1)).mistake
    assert "process 0: another process has ended" in line
    assert "--ckpt_path last continues" in line
    usl(folder, *words, "--ckpt_path", "last").done()
    assert_close_run(folder / "simclr/lost", folder / "simclr/one")


def test_a_killed_process_is_told_of_also_by_one_that_is_busy(folder: Path) -> None:
    """Lightning would kill that one too, and nothing would be said."""
    callbacks = [
        {"class_path": "kill.Kill", "init_args": {"step": 6, "rank": 1}},
        {"class_path": "kill.Busy", "init_args": {"step": 6, "seconds": 60, "rank": 0}},
    ]
    words = [*WORDS, *TWO, "--run_dir", "simclr/busy", f"--trainer.callbacks={json.dumps(callbacks)}"]
    line = usl(folder, *words).mistake
    assert (
        line == "usl: process 0: process 1 was killed by signal 9; --ckpt_path last continues from the last checkpoint"
    )


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_process_after_training_stops_all(folder: Path, by: str) -> None:
    words = [*WORDS, *TWO, "--run_dir", f"simclr/test{by}"]
    stopped = usl(folder, *words, kill(10, "testing", by=by, rank=1))
    assert stopped.code == 130, stopped
    assert stopped.err.count("usl: ") == 1
    assert "usl: interrupted; --ckpt_path last continues" in stopped.err
    usl(folder, *words, "--ckpt_path", "last").done()
    assert_close_run(folder / f"simclr/test{by}", folder / "simclr/one")


def test_a_signal_to_one_process_that_selects_stops_all(folder: Path) -> None:
    words = ["select", "--config", "digits_usl.yaml", "--run_dir", "selected"]
    words += ["--model.init_from", "simclr/one/checkpoints/last.ckpt"]
    stopped = usl(folder, *words, *TWO, "--trainer.accelerator", "cpu", kill(0, "select", by="SIGTERM", rank=1))
    assert stopped.code == 130, stopped
    assert "usl: interrupted; the same command begins again" in stopped.err
    usl(folder, *words).done()


def test_a_process_that_hangs_ends_the_run_in_the_stated_time(folder: Path) -> None:
    words = [*WORDS, *TWO, "--run_dir", "simclr/hung", "--processes.timeout_minutes", "0.4"]
    line = usl(folder, *words, kill(6, by="SIGSTOP", rank=1)).mistake
    assert "not answered for 0.4 minutes (processes.timeout_minutes)" in line
    assert (folder / "simclr/hung/checkpoints/last.ckpt").resolve().name == "step=00000004.ckpt"


def test_a_signal_to_one_process_saves_and_stops_all(folder: Path) -> None:
    words = [*WORDS, *TWO, "--run_dir", "simclr/signal", "--checkpoint.every_steps", "100"]
    stopped = usl(folder, *words, kill(2, by="SIGTERM", rank=1))
    assert stopped.code == 130, stopped
    assert "usl: interrupted; --ckpt_path last continues" in stopped.err
    assert (folder / "simclr/signal/checkpoints/last.ckpt").exists()
    usl(folder, *words, "--ckpt_path", "last").done()
    assert_close_run(folder / "simclr/signal", folder / "simclr/one")


@pytest.mark.parametrize("rank", [0, 1, None])
def test_a_signal_amid_a_validation_saves_and_stops_all(folder: Path, rank: int | None) -> None:
    """The main process leaves at once; that another is asked to is known at the next batch."""
    callbacks = [
        {"class_path": "kill.Kill", "init_args": {"step": 5, "moment": "validation", "by": "SIGTERM", "rank": rank}},
        {"class_path": "kill.Slow", "init_args": {"seconds": 2}},
    ]
    words = [*WORDS, *TWO, "--run_dir", f"simclr/validation{rank}", "--checkpoint.every_steps", "100"]
    slow = ["--data.eval_batch_size", "16", f"--trainer.callbacks={json.dumps(callbacks)}"]
    stopped = usl(folder, *words, *slow)
    assert stopped.code == 130, stopped
    assert "usl: validation broken off after step 5; a resume begins with it" in stopped.err
    assert "Traceback" not in stopped.err
    assert (folder / f"simclr/validation{rank}/checkpoints/last.ckpt").resolve().name == "step=00000005.ckpt"
    usl(folder, *words, "--ckpt_path", "last").done()
    assert_close_run(folder / f"simclr/validation{rank}", folder / "simclr/one")
    own, other = (series(folder / f"simclr/{name}", "knn_accuracy") for name in (f"validation{rank}", "one"))
    assert own == pytest.approx(other, abs=0.01)


def test_a_process_that_drifts_is_noticed(folder: Path) -> None:
    """With batch norm, whose statistics are each process's own on a CPU, and none of whose weights are."""
    drift = "--trainer.callbacks=" + json.dumps([{"class_path": "kill.Drift", "init_args": {"step": 5}}])
    words = [*SIMCLR, *COMMON, "--model.backbone", "small_w16", *TWO, "--processes.check_every", "2"]
    refused = usl(folder, *words, "--run_dir", "simclr/drift", drift)
    assert refused.code == 2, refused
    assert "step 6: encoder.net." in refused.err
    assert "on process 1 is not what it is on process 0" in refused.err
