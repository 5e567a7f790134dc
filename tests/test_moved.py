"""Runs and configurations that name classes as earlier versions of the package did."""

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import FIXMATCH, assert_same_run, write_labels

from usl_lightning.base.classes import MOVED, moved, moved_text
from usl_lightning.base.configs import load_yaml
from usl_lightning.cli import main
from usl_lightning.engine.checkpoint_files import IDENTITY
from usl_lightning.stage.launch import run_stage
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

STEPS = [
    {"class_path": "usl_lightning.data.views.steps.FlipTranslate", "init_args": {"flip": False}},
    {"class_path": "usl_lightning.data.views.randaugment.RandAugment"},
    "usl_lightning.data.views.steps.Cutout",
]
STRONG = (
    f"--model.strong={json.dumps({'class_path': 'usl_lightning.data.views.Recipe', 'init_args': {'steps': STEPS}})}"
)
STOP = '--trainer.callbacks=[{"class_path": "kill.Kill", "init_args": {"step": 3, "by": "SIGTERM"}}]'
TRAIN = [*FIXMATCH, "--trainer.max_steps=6", "--trainer.accelerator=cpu"]
GO_ON = ["--run_dir=run", "--ckpt_path=last"]
LOOK = ["--config=run/config.yaml", "--ckpt_path=last", "--trainer.callbacks=null"]


def run(*words: str) -> None:
    run_stage(StageCommand.parse(words[0], words[1:]))


def earlier_text(text: str) -> str:
    """A text as an earlier version would have written it."""
    for old, new in MOVED.items():
        text = text.replace(new, old)
    return text


def earlier(value: Any) -> Any:
    return json.loads(earlier_text(json.dumps(value)))


def make_earlier(run_dir: Path) -> None:
    """Have a run folder name its classes as an earlier version would have."""
    for name in ("stage.json", "config.yaml"):
        text = (run_dir / name).read_text()
        assert earlier_text(text) != text
        (run_dir / name).write_text(earlier_text(text))
    path = (run_dir / "checkpoints/last.ckpt").resolve()
    checkpoint = torch.load(path, weights_only=True)
    assert earlier(checkpoint[IDENTITY]) != checkpoint[IDENTITY]
    torch.save({**checkpoint, IDENTITY: earlier(checkpoint[IDENTITY])}, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`straight`, six steps; `run`, three of them, and `own.yaml`, as an earlier version would have written them."""
    folder = tmp_path_factory.mktemp("made")
    write_labels(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(*TRAIN, STRONG, "--run_dir=straight")
        with pytest.raises(KeyboardInterrupt):
            run(*TRAIN, STRONG, "--run_dir=run", STOP)
        make_earlier(Path("run"))
        config = yaml.safe_load(Path("run/config.yaml").read_text())
        config["trainer"].pop("callbacks")
        Path("own.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def interrupted(made: Path, here: None) -> None:
    """Here is a copy of `made`."""
    shutil.copytree(made, ".", symlinks=True, dirs_exist_ok=True)


@pytest.mark.parametrize("name", MOVED)
def test_what_has_moved_is_where_the_table_says(name: str) -> None:
    home, _, last = MOVED[name].rpartition(".")
    if last.islower():
        importlib.import_module(MOVED[name])
    else:
        assert hasattr(importlib.import_module(home), last)
    assert moved_text(name) == moved_text(MOVED[name]) == MOVED[name]


def test_only_class_paths_are_renamed() -> None:
    text = "a: usl_lightning.data.steps.Cutout # b: 'usl_lightning.data.modules.NeighborData', usl_lightning.data.steps"
    assert moved_text(text).split() == [
        "a:", "usl_lightning.data.views.steps.Cutout", "#", "b:",
        "'usl_lightning.features.neighbor_data.NeighborData',", "usl_lightning.data.views.steps",
    ]  # fmt: skip
    for other in ("usl_lightning.data.stepsize.X", "my.usl_lightning.data.steps.X", "x/usl_lightning.data.steps.X"):
        assert moved_text(other) == other
    assert moved({"a": ["usl_lightning.data.steps.X", 1, None]}) == {"a": ["usl_lightning.data.views.steps.X", 1, None]}


def test_an_earlier_run_goes_on_bit_for_bit(interrupted: None) -> None:
    run(*TRAIN, STRONG, *GO_ON)
    assert_same_run(Path("run"), Path("straight"))
    assert earlier_text(text := Path("run/stage.json").read_text()) != text


def test_an_earlier_run_goes_on_with_earlier_words(interrupted: None) -> None:
    assert earlier_text(STRONG) != STRONG
    run(*TRAIN, earlier_text(STRONG), *GO_ON)
    assert_same_run(Path("run"), Path("straight"))


def test_an_earlier_configuration_trains_the_same(interrupted: None) -> None:
    assert earlier_text(text := Path("own.yaml").read_text()) == text
    run("fit", "--config=own.yaml", "--run_dir=own")
    assert_same_run(Path("own"), Path("straight"))


def test_an_earlier_checkpoint_is_evaluated_and_started_from(interrupted: None) -> None:
    run("test", *LOOK)
    run("predict", *LOOK, "--out=a.csv")
    assert Path("a.csv").read_text().startswith("image,label,probability\n")
    run(*TRAIN, "--model.init_from=run/checkpoints/last.ckpt", "--trainer.max_steps=1", "--run_dir=next")
    assert json.loads(Path("next/stage.json").read_text())["status"] == "complete"


def test_a_parameter_that_is_new_counts_once_it_is_set(interrupted: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of a version that did not know `joint_pass` goes on with its default, and with no other value."""
    path = Path("run/checkpoints/last.ckpt").resolve()
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[IDENTITY]["model.joint_pass"]
    torch.save(checkpoint, path)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    del config["model"]["init_args"]["joint_pass"]
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    run("test", *LOOK)
    for words in ([*TRAIN, STRONG, *GO_ON], ["test", *LOOK]):
        with pytest.raises(SystemExit):
            main([*words, "--model.joint_pass=false"])
        assert "model.joint_pass was not set, now False" in capsys.readouterr().err
    run(*TRAIN, STRONG, *GO_ON)
    assert_same_run(Path("run"), Path("straight"))


VIEW = {"class_path": "usl_lightning.data.views.SmallGreyView"}
HEADS = {"clusters": 10, "heads": 1, "view": VIEW, "optimizer": {"name": "adam", "lr": 0.1}}
USLT: dict[str, Any] = {
    "model": {"class_path": "usl_lightning.selection.uslt.USLTTraining", "init_args": HEADS},
    "data": {"class_path": "usl_lightning.data.modules.NeighborData", "init_args": {"dataset": "digits", "k": 5}},
    "trainer": {"max_steps": 1},
}


def test_a_class_that_went_to_another_room() -> None:
    Path("uslt.yaml").write_text(yaml.safe_dump(USLT))
    present = "usl_lightning.features.neighbor_data.NeighborData"
    for words in ("--data.k=7", "--data.class_path=usl_lightning.data.modules.NeighborData"):
        stage = StageCommand.parse("fit", ["--config=uslt.yaml", words])
        assert stage.identity()["data.class_path"] == present
        assert StageCLI(stage, build=False).resolved()["data"]["class_path"] == present
    assert load_yaml(Path("uslt.yaml"))["data"]["class_path"] == present


def test_a_mistake_in_an_earlier_configuration_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("uslt.yaml").write_text(yaml.safe_dump(USLT).replace("clusters", "cluster"))
    with pytest.raises(SystemExit):
        main(["fit", "--config=uslt.yaml"])
    line = capsys.readouterr().err
    assert line.startswith("usl: uslt.yaml: model.cluster: unknown key 'cluster' (did you mean 'clusters'?)")
    assert line.count("\n") == 1


def test_a_stage_of_an_earlier_run_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """A chain whose stage an earlier version finished skips it; a setting that differs is told alone."""
    Path("stage.yaml").write_text(yaml.safe_dump(USLT))
    Path("chain.yaml").write_text("stages: [{name: learn, command: fit, config: stage.yaml}]")
    command = StageCommand("fit", [Path("stage.yaml")], {"seed_everything": "0"})
    folder = Path("runs/chain/learn")
    folder.mkdir(parents=True)
    record = {"status": "complete", "identity_hash": "of the earlier names", "identity": earlier(command.identity())}
    (folder / "stage.json").write_text(json.dumps(record))
    main(["run", "chain.yaml", "--dry-run"])
    assert "learn: complete, skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", "chain.yaml", "--dry-run", "--data.k=7"])
    assert "was run with other settings: data.k was 5, now 7; repeat" in capsys.readouterr().err
    main(["run", "chain.yaml", "--dry-run", f"--data.class_path={USLT['data']['class_path']}"])
    assert "learn: complete, skipped" in capsys.readouterr().out
    assert os.listdir(folder) == ["stage.json"]
