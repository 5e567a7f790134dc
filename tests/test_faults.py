"""A full disk, a damaged file, a signal: one clear line, and what was good stays good."""

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kill import Kill
from pytorch_lightning import Callback
from runs import SIMCLR, assert_same_run, differing, kill, last_checkpoint, together, usl
from training import StopError, digits, train

from usl_lightning.base.errors import UslError
from usl_lightning.base.interrupt import Interruption
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import Weak
from usl_lightning.engine.checkpoint_files import AtomicCheckpointIO
from usl_lightning.engine.logs import MetricsCSV
from usl_lightning.models.encoder import read_checkpoint
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.stage.resume import newest_whole

WORDS = [*SIMCLR, "--trainer.max_steps", "9", "--checkpoint.every_steps", "3", "--run_dir", "run"]
RESUME = ("--ckpt_path", "last")


def checkpoints(folder: Path) -> list[str]:
    """Everything in the folder of the checkpoints, and what the newest is."""
    places = folder / "run/checkpoints"
    return [*sorted(path.name for path in places.iterdir()), (places / "last.ckpt").resolve().name]


@dataclass
class Disk:
    """A folder; with `full` before a command the second checkpoint does not fit, until it is told to `grow`."""

    folder: Path
    full: list[str]
    grow: Callable[[], object]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight")
    usl(folder, *WORDS).done()
    return folder


@pytest.fixture
def disk(straight: Path, tmp_path: Path) -> Iterator[Disk]:
    """A file system of its own where one can be mounted, else a limit on the size of a file."""
    size = (straight / "run/checkpoints/last.ckpt").stat().st_size
    mount = partial(subprocess.run, capture_output=True, check=False)
    if mount(["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", tmp_path]).returncode == 0:
        yield Disk(tmp_path, [], lambda: mount(["mount", "-o", f"remount,size={size * 9}", tmp_path]))
        mount(["umount", "-l", tmp_path])
    else:
        yield Disk(tmp_path, ["sh", "-c", f'ulimit -f {size // 1024}; exec "$@"', "sh"], lambda: None)


def test_full_disk(straight: Path, disk: Disk) -> None:
    usl(disk.folder, *WORDS, kill(4)).killed()
    line = usl(disk.folder, *WORDS, *RESUME, wrapper=disk.full).mistake
    assert "run/checkpoints/step=00000006.ckpt: " in line
    assert "cannot be written (No space left on device)" in line or disk.full
    assert "free" in line
    assert checkpoints(disk.folder) == ["last.ckpt", "step=00000003.ckpt", "step=00000003.ckpt"]
    disk.grow()
    usl(disk.folder, *WORDS, *RESUME).done()
    assert_same_run(disk.folder / "run", straight / "run")


@pytest.mark.parametrize("room", [0, 3, 9])
def test_a_metric_that_does_not_fit_on_the_disk_waits_and_costs_nothing(
    tmp_path: Path, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.rewind(0)
    metrics.log_metrics({"loss": 2.0}, 2)
    before = metrics.path.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))  # EFBIG in place of ENOSPC
    try:
        metrics.log_metrics({"loss": 1.0, "lr": 0.1}, 3)
        metrics.log_metrics({"loss": 0.5}, 4)
        assert metrics.path.read_text() == before
        assert metrics.noted(3) == {"loss": 1.0, "lr": 0.1}
        assert metrics.count(4) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.messages) == 1
    assert "metrics.csv: cannot be written" in caplog.text
    metrics.log_metrics({"loss": 0.25}, 5)
    assert metrics.path.read_text() == before + "3,loss,1\n3,lr,0.1\n4,loss,0.5\n5,loss,0.25\n"
    metrics.rewind(4)
    assert metrics.path.read_text() == before + "3,loss,1\n3,lr,0.1\n"


def test_a_row_that_a_full_disk_cut_short_is_noted_again(tmp_path: Path) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.path.write_text("step,name,value\n10,loss,2.5\n11,lr,0.1\n11,loss,2.2")
    metrics.complete({"lr": 0.1, "loss": 2.25}, 11)
    metrics.rewind(12)
    assert metrics.path.read_text() == "step,name,value\n10,loss,2.5\n11,lr,0.1\n11,loss,2.25\n"


DAMAGED = [
    b"abc,def,ghi\n", b"\xff\xfe\x00,\n", b"7,loss\n", b"7,loss,1,2\n", b"7,loss,x\n", b"-7,loss,1\n",
    "\u00b2,loss,1\n".encode(), b"9" * 400 + b",loss,1\n", b"\0" * 4096 + b"\n", b"\n",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_metrics_block_no_resume_and_are_said(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.path.write_bytes(b"step,name,value\n5,loss,2.5\n" + damage + b"6,loss,1e-05\n6,lr,nan\n")
    assert metrics.noted(6)["loss"] == 1e-5
    metrics.complete({"loss": 1e-5, "accuracy": 0.5}, 6)
    metrics.rewind(7)
    assert metrics.path.read_text() == "step,name,value\n5,loss,2.5\n6,loss,1e-05\n6,lr,nan\n6,accuracy,0.5\n"
    assert caplog.messages == [f"{metrics.path}: a damaged line is left out, nothing else is lost"]
    with metrics.path.open("ab") as file:
        file.write(damage * 2)
    metrics.rewind(6)
    assert metrics.path.read_text() == "step,name,value\n5,loss,2.5\n"
    assert "2 damaged lines are left out" in caplog.messages[1]


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 something else\n"])
def test_missing_metrics_block_no_resume_and_are_said(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    if content is not None:
        metrics.path.write_bytes(content)
    metrics.complete({"loss": 2.5}, 6)
    metrics.rewind(7)
    assert metrics.path.read_text() == "step,name,value\n6,loss,2.5\n"
    said = "a damaged line is left out" if content else "what it held of 7 steps is lost, nothing else"
    assert len(caplog.messages) == 1
    assert said in caplog.text


@pytest.mark.parametrize(("kept", "said"), [(0, "3 rows are"), (1, "2 rows are"), (2, "a row is"), (3, ""), (4, "")])
def test_metrics_that_the_checkpoint_knew_of_and_that_are_gone_are_said(
    tmp_path: Path, kept: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    rows = ["4,loss,2.5\n", "5,loss,2.5\n", "5,lr,0.1\n", "6,loss,2.25\n"]
    metrics.path.write_text("step,name,value\n" + "".join(rows))
    known = metrics.count(6)
    metrics.path.write_text("step,name,value\n" + "".join(rows[:kept]))
    metrics.expect(known, 6)
    metrics.rewind(7)
    metrics.complete({"loss": 2.25}, 6)
    assert metrics.path.read_text() == "step,name,value\n" + "".join(rows[: min(kept, 3)] + rows[3:])
    assert caplog.messages == ([f"{metrics.path}: {said} gone from it, nothing else is lost"] if said else [])


def test_a_run_says_that_rows_of_its_metrics_are_gone(straight: Path, tmp_path: Path) -> None:
    usl(tmp_path, *WORDS, kill(7)).killed()
    path = tmp_path / "run" / "metrics.csv"
    path.write_text("step,name,value\n")
    resumed = usl(tmp_path, *WORDS, *RESUME)
    resumed.done()
    assert "run/metrics.csv: 25 rows are gone from it, nothing else is lost" in resumed.err
    assert differing(*(last_checkpoint(folder / "run") for folder in (tmp_path, straight))) == []


def test_a_file_of_metrics_is_not_there_without_its_header(tmp_path: Path) -> None:
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.complete({}, -1)
    assert not metrics.path.exists()
    metrics.rewind(0)
    assert metrics.path.read_text() == "step,name,value\n"


def test_a_folder_that_becomes_read_only(straight: Path, tmp_path: Path) -> None:
    """The superuser writes wherever the file system lets it, unless that right is given up."""
    mortal = ["setpriv", "--bounding-set=-dac_override", "--"] if os.geteuid() == 0 else []
    gone = [{"class_path": "kill.ReadOnly", "init_args": {"step": 4, "folder": "run"}}]
    stopped = usl(tmp_path, *WORDS, f"--trainer.callbacks={json.dumps(gone)}", wrapper=mortal)
    assert "run/checkpoints/step=00000006.ckpt: cannot be written (Permission denied)" in stopped.mistake
    assert checkpoints(tmp_path) == ["last.ckpt", "step=00000003.ckpt", "step=00000003.ckpt"]
    assert "run/stage.json: cannot be written" in usl(tmp_path, *WORDS, *RESUME, wrapper=mortal).mistake
    for folder in (tmp_path / "run", tmp_path / "run/checkpoints"):
        folder.chmod(0o755)
    usl(tmp_path, *WORDS, *RESUME).done()
    assert_same_run(tmp_path / "run", straight / "run")


def test_a_metric_that_cannot_be_noted(caplog: pytest.LogCaptureFixture) -> None:
    metrics = MetricsCSV(Path("/proc/run.csv"))
    metrics.log_metrics({"loss": 1.0}, 3)
    assert "/proc/run.csv: cannot be written (No such file or directory); the run goes on" in caplog.text
    assert metrics.noted(3) == {"loss": 1.0}


def test_a_validation_by_the_clock_is_refused(tmp_path: Path) -> None:
    line = usl(tmp_path, *WORDS, "--trainer.val_check_interval", "00:00:00:01").mistake
    assert "trainer.val_check_interval: expected a number of batches; a run that is continued would not repeat" in line
    assert list(tmp_path.iterdir()) == []


def test_a_validation_amid_a_step_is_refused(tmp_path: Path) -> None:
    amid = ["--trainer.val_check_interval", "5", "--trainer.accumulate_grad_batches", "2"]
    line = usl(tmp_path, *WORDS, *amid).mistake
    assert "trainer.val_check_interval: 5 batches end amid a step of 2 " in line
    assert line.endswith("use 4 or 6")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(straight: Path, tmp_path: Path) -> None:
    jumping = "--trainer.callbacks=" + json.dumps([{"class_path": "kill.ClockJump"}])
    usl(tmp_path, *WORDS, "--checkpoint.every_steps", "null", "--checkpoint.every_minutes", "60", jumping).done()
    assert checkpoints(tmp_path)[:-1] == ["last.ckpt", "step=00000009.ckpt"], "an hour has not passed"
    assert_same_run(tmp_path / "run", straight / "run", but=("loops", "epoch"))  # saved when the loop had ended
    assert 0 < json.loads((tmp_path / "run/stage.json").read_text())["seconds"] < 3600


@pytest.mark.slow
def test_signals_save_what_was_done(straight: Path, tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM, then an impatient user's second Ctrl-C while a checkpoint is written."""
    stopped = usl(tmp_path, *WORDS, kill(4, by="SIGINT"))
    assert stopped.code == 130, stopped
    assert "usl: SIGINT: saving after this step; again: stop at once" in stopped.err
    assert "usl: interrupted; --ckpt_path last continues" in stopped.err
    assert checkpoints(tmp_path) == ["last.ckpt", "step=00000003.ckpt", "step=00000005.ckpt", "step=00000005.ckpt"]
    stopped = usl(tmp_path, *WORDS, *RESUME, kill(6, by="SIGTERM"))
    assert stopped.code == 130, stopped
    assert checkpoints(tmp_path)[-1] == "step=00000007.ckpt"
    callbacks = [{"class_path": "kill.Kill", "init_args": {"step": s, "moment": m, "by": "SIGINT"}} for s, m in
                 ((8, "batch"), (9, "write"))]  # fmt: skip
    stopped = usl(tmp_path, *WORDS, *RESUME, f"--trainer.callbacks={json.dumps(callbacks)}")
    assert stopped.code == 130, stopped
    assert checkpoints(tmp_path) == ["last.ckpt", "step=00000006.ckpt", "step=00000007.ckpt", "step=00000007.ckpt"]
    usl(tmp_path, *WORDS, *RESUME).done()
    assert_same_run(tmp_path / "run", straight / "run")


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_passed_over(straight: Path, tmp_path: Path, damage: str) -> None:
    """The newest checkpoint is cut short, or one bit of its weights is another: the one before is continued."""
    shutil.copytree(straight / "run", tmp_path / "run", symlinks=True)
    newest = tmp_path / "run/checkpoints/step=00000009.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 8
    newest.write_bytes(content if damage == "flip" else content[:-1000])
    looked = usl(tmp_path, "test", *WORDS[1:], *RESUME).mistake
    assert "run/checkpoints/last.ckpt: not a readable checkpoint" in looked
    again = usl(tmp_path, *WORDS, *RESUME).done()
    line = next(line for line in again.err.splitlines() if line.startswith("usl: "))
    assert "run/checkpoints/last.ckpt: not a readable checkpoint" in line
    assert "continuing from run/checkpoints/step=00000006.ckpt, the one before" in line
    assert_same_run(tmp_path / "run", straight / "run")


@pytest.mark.slow
def test_a_signal_requeues_a_slurm_job(straight: Path, tmp_path: Path) -> None:
    """SIGUSR1, ahead of a time limit: the step is saved, `scontrol requeue` is asked, the rerun goes on."""
    fake = tmp_path / "bin/scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "usl", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    slurm["PATH"] = f"{fake.parent}:{os.environ['PATH']}"
    stopped = usl(tmp_path, *WORDS, kill(4, by="SIGUSR1"), **slurm)
    assert stopped.code == 130, stopped
    assert "usl: job 77 is back in the queue" in stopped.err
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert not list(tmp_path.glob("hpc_ckpt*"))
    usl(tmp_path, *WORDS, *RESUME, **slurm).done()
    assert_same_run(tmp_path / "run", straight / "run")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few weights and numbers."""
    path = tmp_path_factory.mktemp("small") / "small.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.arange(40.0)}, "n": [1, 2.5, "x"]}, path)
    return path


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.4, bit=3)
@settings(max_examples=200)
def test_no_flipped_bit_is_read_as_something_else(small: Path, place: float, bit: int) -> None:
    """`torch.load` alone would return other weights: it does not look at the checksums it writes."""
    good, content = read_checkpoint(small), bytearray(small.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    flipped = small.with_name("flipped.ckpt")
    flipped.write_bytes(content)
    with suppress(UslError):
        assert differing(read_checkpoint(flipped), good) == []


def test_a_flipped_weight_is_refused(small: Path) -> None:
    content = small.read_bytes().replace(torch.tensor(17.0).numpy().tobytes(), torch.tensor(18.0).numpy().tobytes())
    flipped = small.with_name("flipped.ckpt")
    flipped.write_bytes(content)
    assert torch.load(flipped, weights_only=True)["state_dict"]["w"][17] == 18
    with pytest.raises(UslError, match=r"flipped\.ckpt: not a readable checkpoint \(BadZipFile\)"):
        read_checkpoint(flipped)


def test_without_a_whole_checkpoint_there_is_nothing_to_continue(small: Path, tmp_path: Path) -> None:
    (tmp_path / "step=00000003.ckpt").write_bytes(small.read_bytes()[:100])
    (tmp_path / "last.ckpt").symlink_to("step=00000003.ckpt")
    with pytest.raises(UslError, match=r"last\.ckpt: not a readable .* no whole one before it: start afresh"):
        newest_whole(tmp_path)


def test_a_folder_or_foreign_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "foreign.ckpt").write_text("weights")
    words = [*SIMCLR, "--trainer.max_steps", "2", "--ckpt_path"]
    foreign, folder = together(
        lambda: usl(tmp_path, *words, "foreign.ckpt"), lambda: usl(tmp_path, *words, str(tmp_path))
    )
    assert "foreign.ckpt: not a readable checkpoint" in foreign.mistake
    assert f"no such checkpoint: {tmp_path}" in folder.mistake
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == ["foreign.ckpt"]


def simclr(data: ImageData) -> SimCLR:
    return SimCLR(data.spec, Weak(), Optimization(), backbone="small_nf", hidden_dim=16, projection_dim=8, knn_k=5)


class Lost(Callback):
    """A power cut as the first checkpoint is to be written: what the validation told is noted, but not saved."""

    def on_save_checkpoint(self, *_: Any) -> None:
        """Nothing is written."""
        raise StopError


@pytest.mark.parametrize(
    ("step", "moment", "accumulate"),
    [(4, "validation", 1), (4, "measure", 1), (8, "validation", 1), (8, "measure", 1), (2, "measure", 2)],
)
def test_a_signal_amid_a_validation_saves_at_once(tmp_path: Path, step: int, moment: str, accumulate: int) -> None:
    """A resume validates the step, as often as it takes, and goes on as a run nobody touched."""
    options: dict[str, Any] = {"every_steps": 3, "accumulate_grad_batches": accumulate}
    last = tmp_path / "own/checkpoints/last.ckpt"
    stop = Kill(step, moment, by="SIGTERM")
    with Interruption() as interruption, pytest.raises(SystemExit):
        train(simclr, digits, tmp_path / "own", 8, stop=stop, interruption=interruption, **options)
    assert last.resolve().name == f"step={step:08d}.ckpt"
    train(simclr, digits, tmp_path / "own", 8, stop=Lost(), **options)
    assert last.resolve().name == f"step={step:08d}.ckpt"
    own = train(simclr, digits, tmp_path / "own", 8, **options)
    other = train(simclr, digits, tmp_path / "straight", 8, **options)
    assert differing(own, other) == []
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in ("own", "straight")]
    assert rows[0] == rows[1]
    assert sum(",knn_accuracy," in row for row in rows[0].splitlines()) == 2 * accumulate


class Asked(Callback):
    """A signal while a run is made ready: the model is read, what the optimizer knew is not."""

    def on_fit_start(self, *_: Any) -> None:
        """Nothing is trained yet."""
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_before_a_resumed_validation_begins_changes_no_file(tmp_path: Path) -> None:
    checkpoints = tmp_path / "own/checkpoints"
    for stop in (Kill(4, "validation", by="SIGTERM"), Asked()):
        with Interruption() as interruption, pytest.raises(SystemExit):
            train(simclr, digits, tmp_path / "own", 8, stop=stop, interruption=interruption, every_steps=3)
        assert sorted(path.name for path in checkpoints.glob("step=*")) == ["step=00000003.ckpt", "step=00000004.ckpt"]
        assert (checkpoints / "last.ckpt").resolve().name == "step=00000004.ckpt"


@pytest.mark.parametrize("other", [{"limit_val_batches": 0}, {"val_check_interval": 3}])
def test_a_run_that_validates_no_more_where_it_was_stopped(tmp_path: Path, other: dict[str, int]) -> None:
    """At the last step, where there is nothing else to do."""
    stop = Kill(8, "validation", by="SIGTERM")
    with Interruption() as interruption, pytest.raises(SystemExit):
        train(simclr, digits, tmp_path / "own", 8, stop=stop, interruption=interruption, every_steps=3)
    own = train(simclr, digits, tmp_path / "own", 8, **other)
    reference = train(simclr, digits, tmp_path / "straight", 8)
    assert own["global_step"] == 8
    assert differing(own["state_dict"], reference["state_dict"]) == []


def test_a_signal_that_follows_does_not_disturb_what_is_saved() -> None:
    with Interruption() as interruption:
        interruption.deferred = interruption.breaks = True
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signum == signal.SIGUSR1, "the job is to be put back into the queue"


# Training that ends early --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"lowers": True}, {"raises": True}])
def test_a_run_that_ended_early_is_paused_not_complete(straight: Path, tmp_path: Path, how: dict[str, bool]) -> None:
    enough = json.dumps([{"class_path": "kill.Enough", "init_args": {"step": 4, **how}}])
    line = usl(tmp_path, *WORDS, f"--trainer.callbacks={enough}").mistake
    assert "training ended after step 4 of 9" in line
    assert "--ckpt_path last continues it" in line
    assert json.loads((tmp_path / "run/stage.json").read_text())["status"] == "running"
    assert not (tmp_path / "run/result.json").exists()
    usl(tmp_path, *WORDS, *RESUME).done()
    # Lightning counts an epoch more, at whose end it validates; what is learned is the same.
    states = [last_checkpoint(folder / "run") for folder in (tmp_path, straight)]
    assert differing(*(state["state_dict"] for state in states)) == []
    assert differing(*(state["optimizer_states"] for state in states)) == []


def test_a_run_whose_time_is_over_says_how_to_go_on(tmp_path: Path) -> None:
    line = usl(tmp_path, *WORDS, "--trainer.max_time=00:00:00:00").mistake
    assert "training ended after step 0 of 9: trainer.max_time 00:00:00:00 is over, give a longer one" in line
    assert "nothing is saved: the same command begins anew" in line
    usl(tmp_path, *WORDS, "--trainer.max_time=00:01:00:00").done()


def test_a_run_amid_which_time_is_over_says_so(tmp_path: Path) -> None:
    slow = json.dumps([{"class_path": "kill.Enough", "init_args": {"step": 4, "waits": 1.2}}])
    line = usl(tmp_path, *WORDS, "--trainer.max_time=00:00:00:01", f"--trainer.callbacks={slow}").mistake
    assert "of 9: trainer.max_time 00:00:00:01 is over, give a longer one; the run is paused" in line


@pytest.mark.parametrize(("name", "options", "told"), [
    ("EarlyStopping", {"monitor": "nosuch"}, "trainer.callbacks: Early stopping conditioned on metric `nosuch`"),
    ("EarlyStopping", {"monitor": "loss", "mode": "x"}, "`mode` can be min, max, got x"),
    ("ModelCheckpoint", {"save_top_k": 2}, "is not a valid configuration"),
    ("Timer", {"duration": {"seconds": 1}}, "cannot be written to config.yaml: "),
])  # fmt: skip
def test_what_a_callback_refuses_is_told_in_a_line(tmp_path: Path, name: str, options: Any, told: str) -> None:
    given = json.dumps([{"class_path": f"pytorch_lightning.callbacks.{name}", "init_args": options}])
    words = (f"--trainer.callbacks={given}", "--trainer.val_check_interval=2")
    assert told in usl(tmp_path, *WORDS, *words).mistake


@pytest.mark.parametrize("option", [
    "fast_dev_run=true", "overfit_batches=2", "limit_train_batches=3", "limit_test_batches=0.5",
    "limit_predict_batches=1", "barebones=true",
])  # fmt: skip
def test_trials_are_refused(tmp_path: Path, option: str) -> None:
    line = usl(tmp_path, *WORDS, f"--trainer.{option}").mistake
    assert f"trainer.{option.partition('=')[0]}: " in line
    assert "small trainer.max_steps" in line
    assert not (tmp_path / "run").exists()
