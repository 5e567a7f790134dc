"""What a stage reads of the disk, it reads once; what changes between being noted and being used is refused."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from usl_lightning.base.configs import load_yaml
from usl_lightning.cli import main
from usl_lightning.data.images import folders, splits
from usl_lightning.labels import formats
from usl_lightning.selection.usl import USL
from usl_lightning.stage import identity, runner
from usl_lightning.stage.launch import run_stage
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

DATA = "--data.dataset=folder --data.dir=photos --data.image_size=8 --data.channels=1 --data.residence=device"
TINY = "--model.backbone=small_w16 --trainer.max_steps=1 --trainer.accelerator=cpu"
SIMCLR = f"fit --config=digits_simclr.yaml --run_dir=simclr --model.hidden_dim=8 --data.batch_size=8 {DATA} {TINY}"
FIXMATCH = (
    "fit --config=digits_fixmatch.yaml --data.batch_size=4 --data.unlabelled_ratio=1 --data.labels=labels.csv "
    f"--data.labels_file=photos.csv --model.init_from=simclr/checkpoints/last.ckpt {DATA} {TINY}"
)
SELECT = (
    "select --config=digits_usl.yaml --model.budget=6 --model.k=3 --data.class_list=classes.txt "
    f"--model.keep_from=labels.csv --model.init_from=simclr/checkpoints/last.ckpt {DATA} --trainer.accelerator=cpu"
)
ARRAYS = "--data.dataset=arrays --data.dir=x.npz --data.labels_file=null --data.labels=plain.json"
FEATURES = "--model.init_from=null --model.features=features.npy"


def write_arrays(seed: int) -> None:
    """`x.npz`: 24 images with labels, always of the same size."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez("x.npz", images=noise, labels=np.arange(24) % 2)


@pytest.fixture(scope="module")
def simclr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in two splits and two classes, four labels, and a checkpoint of SimCLR on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("once"))
        noise = np.random.default_rng(0)
        files = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(12)]
        for file in files:
            path = Path("photos", file)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        Path("labels.csv").write_text("Index\n3\n14\n7\n20\n")
        Path("plain.json").write_text("[3, 14, 7, 20]")
        Path("classes.txt").write_text("a\nb\n")
        Path("photos.csv").write_text("file,label\n" + "".join(f"{file},{file.split('/')[1]}\n" for file in files))
        run(SIMCLR)
        return Path.cwd()


@pytest.fixture(autouse=True)
def here(simclr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for every test, with the same in it."""
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(simclr, ".", symlinks=True, dirs_exist_ok=True)


def run(words: str) -> None:
    command, *rest = words.split()
    run_stage(StageCommand.parse(command, rest))


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thing is done, by what it is done to."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, what: Callable[..., object]) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[f"{name.strip('_')} {what(*args)}".strip()] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(hashlib, "file_digest", lambda file, _: file.name)
    count(formats, "read", str)
    count(folders, "_walk", lambda root, *_: root)
    count(splits, "_split_folders", lambda *_: "")
    count(identity, "data_signature", lambda *_: "")
    count(StageCLI, "resolved", lambda _: "")
    return counts


ALWAYS = ("read labels.csv", "walk photos/train", "walk photos/test", "split_folders", "data_signature", "resolved")


def test_fit_reads_everything_once(counts: Counter[str]) -> None:
    run(FIXMATCH)
    hashed = ("labels.csv", "photos.csv", "simclr/checkpoints/last.ckpt")
    assert counts == Counter([*(f"file_digest {path}" for path in hashed), *ALWAYS])


def test_select_reads_everything_once(counts: Counter[str]) -> None:
    run(SELECT)
    hashed = ("labels.csv", "classes.txt", "simclr/checkpoints/last.ckpt")
    assert counts == Counter([*(f"file_digest {path}" for path in hashed), *ALWAYS])


def test_another_run_in_the_same_process_reads_again(counts: Counter[str]) -> None:
    run(f"{SELECT} --run_dir=one")
    Path("labels.csv").write_text("Index\n4\n15\n")
    run(f"{SELECT} --run_dir=two")
    assert counts["read labels.csv"] == 2
    first, second = (json.loads(Path(name, "labels.json").read_text()) for name in ("one", "two"))
    assert (first["indices"][:4], second["indices"][:2]) == ([3, 14, 7, 20], [4, 15])
    assert first["method"]["params"]["keep_from"] != second["method"]["params"]["keep_from"]


def add_photo() -> None:
    shutil.copy("photos/train/a/0.png", "photos/train/b/new.png")


CHANGES: dict[str, tuple[str, Callable[[], object]]] = {
    "labels.csv": (FIXMATCH, lambda: Path("labels.csv").write_text("Index\n3\n14\n7\n21\n")),
    "photos.csv": (FIXMATCH, lambda: Path("photos.csv").write_text(Path("photos.csv").read_text() + "\n")),
    "simclr/checkpoints/last.ckpt": (FIXMATCH, lambda: os.utime("simclr/checkpoints/last.ckpt", (1, 1))),
    "photos/train": (FIXMATCH, add_photo),
    "photos/test": (FIXMATCH, lambda: Path("photos/test/a/3.png").unlink()),
    "classes.txt": (SELECT, lambda: Path("classes.txt").write_text("b\na\n")),
    "x.npz": (f"{FIXMATCH} {ARRAYS}", lambda: write_arrays(1)),
    "features.npy": (f"{SELECT} {FEATURES}", lambda: np.save("features.npy", np.ones((24, 3), np.float32))),
}
"""What changes -> the stage that is about to use it, and how it changes."""


@pytest.mark.parametrize("path", CHANGES)
def test_what_changes_before_it_is_used_is_refused(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, change = CHANGES[path]
    write_arrays(0)
    np.save("features.npy", np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32))
    monkeypatch.setattr(runner, "show_messages", change)  # the identity is noted, nothing is opened yet
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--run_dir=run"])
    line = f"usl: {path}: was changed while this run was starting; start it again\n"
    assert (end.value.code, capsys.readouterr().err) == (2, line)
    assert not Path("run").exists()


def test_what_changes_before_it_is_noted_is_read_as_it_is_then(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = StageCommand.noted_identity

    def late(stage: StageCommand) -> identity.StageIdentity:
        Path("labels.csv").write_text("Index\n4\n15\n")
        return noted(stage)

    monkeypatch.setattr(StageCommand, "noted_identity", late)
    run(f"{SELECT} --run_dir=run")
    assert json.loads(Path("run/labels.json").read_text())["indices"][:2] == [4, 15]


def test_a_configuration_is_taken_as_it_was_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a run and turns to the next may well write to the same file."""
    own = "parts: [fixmatch, digits_semisup]\nmodel: {init_args: {threshold: 0.5}}\n"
    Path("own.yaml").write_text(own)
    monkeypatch.setattr(runner, "show_messages", lambda: Path("own.yaml").write_text(own.replace("0.5", "0.7")))
    run(f"{FIXMATCH.replace('digits_fixmatch', 'own')} --run_dir=run")
    assert load_yaml(Path("run/config.yaml"))["model"]["init_args"]["threshold"] == 0.5
    assert json.loads(Path("run/stage.json").read_text())["identity"]["model.threshold"] == 0.5


def test_what_changes_once_it_is_used_is_recorded_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    was = "sha256:" + hashlib.sha256(Path("labels.csv").read_bytes()).hexdigest()

    def choose(self: USL, *args: Any) -> Any:
        Path("labels.csv").write_text("Index\n0\n")
        return original(self, *args)

    original = USL.choose
    monkeypatch.setattr(USL, "choose", choose)
    run(f"{SELECT} --run_dir=run")
    index = json.loads(Path("run/labels.json").read_text())
    assert index["method"]["params"]["keep_from"] == was
    assert json.loads(Path("run/stage.json").read_text())["identity"]["model.keep_from"] == was


def test_a_run_among_its_own_photos_changes_none_of_them() -> None:
    run(f"{SELECT} --run_dir=photos/train/run")
    assert json.loads(Path("photos/train/run/stage.json").read_text())["status"] == "complete"
