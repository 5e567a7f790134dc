"""A full disk, a damaged file, a signal: one clear line, and what was good stays good."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from runs import SIMCLR, assert_same_run, kill, together, usl

from usl_lightning.errors import UslError
from usl_lightning.logs import MetricsCSV

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
    assert "cannot be written" in line
    assert "free" in line
    assert checkpoints(disk.folder) == ["last.ckpt", "step=00000003.ckpt", "step=00000003.ckpt"]
    disk.grow()
    usl(disk.folder, *WORDS, *RESUME).done()
    assert_same_run(disk.folder / "run", straight / "run")


def test_full_disk_when_a_metric_is_noted() -> None:
    with pytest.raises(UslError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        MetricsCSV(Path("/dev/full")).log_metrics({"loss": 1.0}, 3)


def test_signals_and_a_damaged_checkpoint(straight: Path, tmp_path: Path) -> None:
    """Ctrl-C while a checkpoint is written, SIGTERM later, then the newest checkpoint is cut short."""
    stopped = usl(tmp_path, *WORDS, kill(6, "write", by="SIGINT"))
    assert stopped.code == 130, stopped
    assert "usl: interrupted; --ckpt_path last continues" in stopped.err
    assert checkpoints(tmp_path) == ["last.ckpt", "step=00000003.ckpt", "step=00000003.ckpt"]
    stopped = usl(tmp_path, *WORDS, *RESUME, kill(7, by="SIGTERM"))
    assert stopped.code == 130, stopped
    assert checkpoints(tmp_path) == ["last.ckpt", "step=00000003.ckpt", "step=00000006.ckpt", "step=00000006.ckpt"]

    newest = tmp_path / "run/checkpoints/step=00000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    line = usl(tmp_path, *WORDS, *RESUME).mistake
    assert "run/checkpoints/last.ckpt: not a readable checkpoint" in line
    usl(tmp_path, *WORDS, "--ckpt_path", "run/checkpoints/step=00000003.ckpt").done()
    assert_same_run(tmp_path / "run", straight / "run")


def test_a_folder_or_foreign_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "foreign.ckpt").write_text("weights")
    words = [*SIMCLR, "--trainer.max_steps", "2", "--ckpt_path"]
    foreign, folder = together(
        lambda: usl(tmp_path, *words, "foreign.ckpt"), lambda: usl(tmp_path, *words, str(tmp_path))
    )
    assert "foreign.ckpt: not a readable checkpoint" in foreign.mistake
    assert f"no such checkpoint: {tmp_path}" in folder.mistake
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == ["foreign.ckpt"]
