"""What a run did not write is neither deleted nor overwritten; what is refused has changed nothing."""

import json
import os
from pathlib import Path

import pytest
import torch

from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.engine.checkpoint_files import IDENTITY, CheckpointFolder
from usl_lightning.stage.folder import StageFolder

SELECT = ("select", "--config", "digits_random.yaml", "--run_dir", "p/q/r")
CHAIN = {"stages": [{"name": "r", "command": "select", "config": "digits_random.yaml"}]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip()


def look(folder: Path) -> dict[str, tuple[int, int]]:
    """Of everything below a folder, and of itself: what would tell that it was touched."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints", "metrics.csv", "labels.json", "result.json", "outputs"])
def test_a_folder_with_files_of_no_run_is_refused(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as those of a finished run whose record is gone."""
    (here / "p/q/r" / name).mkdir(parents=True)
    before = look(here)
    line = refused(capsys, *SELECT)
    assert f"p/q/r/{name}: is there already, and no stage.json says of which run; choose another --run_dir" in line
    (here / "chain.yaml").write_text(json.dumps(CHAIN))
    os.utime(here, ns=(0, before[str(here)][1]))
    for more in ([], ["--dry-run"]):
        line = refused(capsys, "run", "chain.yaml", "--out", "p", "--name", "q", *more)
        assert f"p/q/r/{name}: is there already" in line
        assert "--redo r puts it aside" in line
    assert before == {path: stamp for path, stamp in look(here).items() if not path.endswith("chain.yaml")}


@pytest.mark.parametrize(("name", "said"), [
    ("summary.json", "p/q/summary.json: is there already, and of no run; move it, or give this run another --name"),
    ("summary.png", "p/q/summary.png: is there already, and of no run"),
    ("run.json", "p/q/run.json: damaged"),
])  # fmt: skip
def test_a_chains_folder_with_files_of_no_run_is_refused(
    name: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p/q").mkdir(parents=True)
    (here / "p/q" / name).write_text("{}")
    (here / "chain.yaml").write_text(json.dumps(CHAIN))
    before = look(here)
    for more in ([], ["--dry-run"], ["--slurm"]):
        assert said in refused(capsys, "run", "chain.yaml", "--out", "p", "--name", "q", *more)
    assert look(here) == before


def test_other_files_may_be_in_a_folder(here: Path) -> None:
    (here / "p/q/r").mkdir(parents=True)
    (here / "p/q/r/notes.txt").write_text("of a person")
    main(SELECT)
    assert (here / "p/q/r/notes.txt").read_text() == "of a person"


def test_a_refused_command_leaves_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be picked" in refused(capsys, *SELECT, "--model.budget", "9999")
    assert list(here.iterdir()) == []


def test_a_refused_command_leaves_a_folder_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p/q/r").mkdir(parents=True)
    before = look(here)
    assert "cannot be picked" in refused(capsys, *SELECT, "--model.budget", "9999")
    assert look(here) == before


# checkpoints ---------------------------------------------------------------------------------------------

IDENTITY_FIELDS = {"model.class_path": "A", "trainer.max_steps": 10}


def saved(folder: Path, name: str, identity: dict[str, object] | None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    torch.save({"state_dict": {}, **({} if identity is None else {IDENTITY: identity})}, path)
    return path


def test_checkpoints_of_others_are_refused(here: Path) -> None:
    for identity in (None, {"model.class_path": "B", "trainer.max_steps": 10}):
        path = saved(here / "c", "step=00000005.ckpt", identity)
        for resuming in (True, False):
            if identity is not None or not resuming:
                with pytest.raises(UslError, match=r"step=00000005\.ckpt: is not of this run; move it elsewhere"):
                    CheckpointFolder(here / "c").recognise(IDENTITY_FIELDS, resuming=resuming)
        path.unlink()


def test_of_the_run_only_its_own_are_tidied_up(here: Path) -> None:
    """Names that a person gave, and what cannot be told to be of the run, stay."""
    own = saved(here / "c", "step=00000005.ckpt", {**IDENTITY_FIELDS, "trainer.max_steps": 5})
    saved(here / "c", "step=00000003.ckpt", IDENTITY_FIELDS)
    (here / "c/step=00000004.ckpt").write_text("damaged")
    for name in ("step=5.ckpt", "step=00000001.best.ckpt", "best.ckpt"):
        (here / "c" / name).write_text("precious")
    folder = CheckpointFolder(here / "c")
    folder.recognise(IDENTITY_FIELDS, resuming=True)
    folder.tidy(saved(here / "c", "step=00000007.ckpt", IDENTITY_FIELDS))
    left = {path.name for path in (here / "c").iterdir()}
    assert left == {
        "last.ckpt", own.name, "step=00000007.ckpt", "step=00000004.ckpt", "step=5.ckpt", "step=00000001.best.ckpt",
        "best.ckpt",
    }  # fmt: skip


def test_a_folder_that_is_held_says_so_through_links(here: Path) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to("real")
    error = pytest.raises(UslError, match="another run is using this folder")
    with StageFolder(here / "real").locked(), error, StageFolder(here / "link").locked():
        pass


@pytest.mark.parametrize("locked", [False, True])
def test_a_refusal_leaves_the_lock_as_it_was(locked: bool, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though somebody's `stage.json` is there, or none."""
    for name, content in (("stage.json", '{"mine": 1}'), ("config.yaml", "mine: 1\n")):
        folder = here / f"of_{name}"
        folder.mkdir()
        (folder / name).write_text(content)
        if locked:
            (folder / ".lock").touch()
        with pytest.raises(SystemExit):
            main(["select", "--config", "digits_random.yaml", "--run_dir", str(folder)])
        assert sorted(os.listdir(folder)) == [".lock"] * locked + [name]


def test_a_run_is_no_file_and_no_folder_of_a_stage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine").write_text("mine")
    main(["select", "--config", "digits_random.yaml", "--run_dir", "s"])
    capsys.readouterr()
    for command in (["run", "digits_quickstart.yaml"], ["table", "digits_table.yaml"]):
        for name, said in (("mine", "is there already, and no folder; choose another"), ("s", "is the folder of a")):
            with pytest.raises(SystemExit):
                main([*command, "--out", ".", "--name", name, "--dry-run"])
            assert f"{name}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".", "..", "a\tb", "a\nb", "a" * 256, "é" * 128])
@pytest.mark.parametrize("command", [["run", "digits_quickstart.yaml"], ["table", "digits_table.yaml"]])
def test_a_run_stays_in_its_folder(
    name: str, command: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = look(here)
    for more in ([], ["--dry-run"]):
        said = refused(capsys, *command, "--out", "p", "--name", name, *more)
        assert f"usl {command[0]}: --name: " in said
        assert "is no name of one folder; expected up to 255 bytes" in said
    assert look(here) == before
