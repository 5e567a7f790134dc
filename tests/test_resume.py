"""kill -9 at exact points of a run, then `--ckpt_path last`: the result is that of a run nobody touched."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import FIXMATCH, SIMCLR, assert_same_run, differing, kill, last_checkpoint, together, usl, write_labels
from torch import nn

from usl_lightning.compute.optim import Optimization, lr_factor
from usl_lightning.stage.folder import StageFolder

pytestmark = pytest.mark.slow

RESUME = ("--ckpt_path", "last")


@pytest.fixture(scope="module")
def simclr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`straight`, 14 steps at once; `killed`, 10 steps and an extension to 14, killed in each part."""
    folder = tmp_path_factory.mktemp("simclr")
    words = [*SIMCLR, "--model.optimizer.schedule", "constant", "--model.optimizer.warmup_steps", "9"]
    words += ["--trainer.val_check_interval", "4", "--checkpoint.every_steps", "4"]
    killed = [*words, "--run_dir", "killed"]
    ten, more = ["--trainer.max_steps", "10"], ["--trainer.max_steps", "14"]

    streamed = ["--data.residence", "stream", "--data.eval_batch_size", "100", "--data.workers"]

    def interrupted() -> None:
        usl(folder, *killed, *ten, *streamed, "2", kill(6)).killed()
        assert (folder / "killed/checkpoints/last.ckpt").resolve().name == "step=00000004.ckpt"
        usl(folder, *killed, *ten, *RESUME, kill(8, "validation")).killed()
        usl(folder, *killed, *ten, *RESUME, *streamed, "1").done()
        assert "trainer.max_steps was 10, now 14" in usl(folder, *killed, *more, *RESUME).mistake
        usl(folder, *killed, *more, *RESUME, "--extend", kill(14, "test")).killed()
        usl(folder, *killed, *more, *RESUME).done()

    together(interrupted, lambda: usl(folder, *words, *more, "--run_dir", "straight").done())
    return folder


@pytest.fixture(scope="module")
def fixmatch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`straight` and `killed`: 11 steps of two micro-batches; the killed one saves at other steps."""
    folder = tmp_path_factory.mktemp("fixmatch")
    write_labels(folder)
    words = [*FIXMATCH, "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "11"]
    words += ["--trainer.val_check_interval", "6"]
    killed = [*words, "--run_dir", "killed"]

    def interrupted() -> None:
        usl(folder, *killed, "--checkpoint.every_minutes", "1e-9", kill(4, "micro")).killed()  # not validated
        usl(folder, *killed, "--checkpoint.every_steps", "3", *RESUME, kill(6, "validation")).killed()
        usl(folder, *killed, "--checkpoint.every_steps", "3", *RESUME, kill(9, "write")).killed()
        assert len(list((folder / "killed/checkpoints").glob(".*.tmp"))) == 1
        usl(folder, *killed, "--checkpoint.every_steps", "4", *RESUME, kill(8, "rename")).killed()
        usl(folder, *killed, *RESUME, "--checkpoint.every_steps", "4").done()

    straight = [*words, "--run_dir", "straight", "--checkpoint.every_steps", "4"]
    together(interrupted, lambda: usl(folder, *straight).done())
    return folder


def test_simclr_killed_and_extended_is_bit_identical(simclr: Path) -> None:
    assert_same_run(simclr / "killed", simclr / "straight", but=("loops", "epoch"))  # it ended, and began again, at 10
    assert last_checkpoint(simclr / "killed")["global_step"] == 14


def test_an_extended_run_has_the_schedule_of_its_new_length() -> None:
    def scheduler(max_steps: int) -> Any:
        built = Optimization(schedule="cosine").build(nn.Linear(2, 2), max_steps=max_steps, batch_size=1)
        return built["lr_scheduler"]["scheduler"]

    short, extended = scheduler(10), scheduler(20)
    for _ in range(10):
        short.optimizer.step()
        short.step()
    extended.load_state_dict(short.state_dict())
    extended.optimizer.step()
    extended.step()
    assert extended.get_last_lr() == [0.03 * lr_factor(11, 20, schedule="cosine")] * 2


def test_every_validation_is_noted_once(simclr: Path) -> None:
    rows = (simclr / "killed/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows if ",knn_accuracy," in row] == ["3", "7", "11", "14"]
    assert [row.split(",")[0] for row in rows if ",loss," in row] == [str(step) for step in range(14)]


def test_fixmatch_killed_amid_accumulation_and_writing_is_bit_identical(fixmatch: Path) -> None:
    assert_same_run(fixmatch / "killed", fixmatch / "straight")
    state = last_checkpoint(fixmatch / "killed")["state_dict"]
    assert any(key.startswith("ema.module.") and key.endswith("running_var") for key in state)


def test_two_newest_checkpoints_are_kept(fixmatch: Path) -> None:
    names = sorted(path.name for path in (fixmatch / "killed/checkpoints").iterdir())
    assert names == ["last.ckpt", "step=00000008.ckpt", "step=00000011.ckpt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model.temperature", "0.4"], "model.temperature was 0.5, now 0.4"),
        (["--model.view.scale", "[0.4, 1]"], "model.view.scale was not set, now [0.4, 1]"),
        (["--seed_everything", "1"], "seed_everything was 0, now 1"),
        (["--data.batch_size", "32"], "data.batch_size was 64, now 32"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision was 32-true, now bf16-mixed"),
    ],
)
def test_resume_with_another_parameter_is_refused(simclr: Path, change: list[str], said: str) -> None:
    before = (simclr / "straight/stage.json").read_bytes()
    words = [*SIMCLR, "--model.optimizer.schedule", "constant", "--model.optimizer.warmup_steps", "9"]
    line = usl(simclr, *words, "--trainer.max_steps", "14", "--run_dir", "straight", *RESUME, *change).mistake
    assert said in line
    assert line.count(" was ") == 1
    assert (simclr / "straight/stage.json").read_bytes() == before


def test_a_run_goes_on_by_its_own_configuration(simclr: Path) -> None:
    copy = shutil.copytree(simclr / "straight", simclr / "copied", symlinks=True)
    before = json.loads((copy / "stage.json").read_text())
    words = ["fit", "--config", "copied/config.yaml", "--run_dir", "copied", *RESUME]
    line = usl(simclr, *words, "--model.temperature", "0.4", "--model.projection_layers", "3").mistake
    assert line.endswith(": model.projection_layers was not set, now 3; model.temperature was 0.5, now 0.4")
    usl(simclr, *words).done()
    assert json.loads((copy / "stage.json").read_text())["identity"] == before["identity"], "as a chain compares it"


def test_resume_with_another_class_is_refused(simclr: Path, fixmatch: Path) -> None:
    checkpoint = str(simclr / "straight/checkpoints/last.ckpt")
    words = [*FIXMATCH, "--trainer.max_steps", "14", "--run_dir", "foreign", "--ckpt_path", checkpoint]
    line = usl(fixmatch, *words).mistake
    assert "holds a usl_lightning.pretrain.simclr.SimCLR" in line
    assert "--model.init_from" in line
    assert not (fixmatch / "foreign").exists()


def test_the_labels_of_a_checkpoint_given_by_path_are_compared(fixmatch: Path, tmp_path: Path) -> None:
    """A run continued in another folder: the same content under another path is the same run."""
    source = fixmatch / "killed/checkpoints/step=00000008.ckpt"
    words = [*FIXMATCH, "--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "11"]
    words += ["--trainer.val_check_interval", "6", "--ckpt_path", str(source)]
    labels = json.loads((fixmatch / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps([*labels[:-1], 16]))
    copy = str(shutil.copy(fixmatch / "labels.json", tmp_path / "copy.json"))
    other, same = together(
        lambda: usl(tmp_path, *words, "--run_dir", "other"),
        lambda: usl(tmp_path, *words, "--run_dir", "moved", "--data.labels", copy),
    )
    assert "data.labels was a file of other content" in other.mistake
    assert not (tmp_path / "other").exists()
    same.done()
    states = [last_checkpoint(path)["state_dict"] for path in (tmp_path / "moved", fixmatch / "straight")]
    assert differing(*states) == []


def test_a_checkpoint_by_path_does_not_overwrite_another_run(simclr: Path, fixmatch: Path) -> None:
    before = (fixmatch / "straight/stage.json").read_bytes()
    words = [*SIMCLR, "--model.optimizer.schedule", "constant", "--model.optimizer.warmup_steps", "9"]
    checkpoint = str(simclr / "straight/checkpoints/step=00000012.ckpt")
    words += ["--trainer.max_steps", "14", "--ckpt_path", checkpoint, "--run_dir", "straight"]
    assert "straight" in usl(fixmatch, *words).mistake
    assert (fixmatch / "straight/stage.json").read_bytes() == before


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "run")
    begun, tell = os.pipe()
    with folder.locked():
        folder.begin({})
        worker = os.fork()
        if worker == 0:
            os.write(tell, b"!")
            signal.pause()
        os.read(begun, 1)
    try:
        with folder.locked():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_resume_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in usl(tmp_path, *SIMCLR, "--trainer.max_steps", "2", *RESUME).mistake
    assert list(tmp_path.iterdir()) == []


def test_starting_again_in_a_finished_folder_is_refused(simclr: Path) -> None:
    line = usl(simclr, *SIMCLR, "--trainer.max_steps", "14", "--run_dir", "straight").mistake
    assert "holds a finished run" in line
