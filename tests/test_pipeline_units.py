"""A chain's file, options, skipping, resuming and summary; its stages are played by a stand-in."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from usl_lightning.base.errors import UslError
from usl_lightning.chain import pipeline
from usl_lightning.chain.file import Chain, Stage
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.summary import estimates, summarise, table
from usl_lightning.cli import main
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.words import StageCommand

STAGE = """\
model: {class_path: timm.some.Method, init_args: {threshold: 0.9}}
data: {class_path: timm.some.Data, init_args: {dataset: digits}}
"""
CHAIN: dict[str, Any] = {
    "seed": 4,
    "stages": [
        {"name": "pretrain", "command": "fit", "config": "stage.yaml", "set": {"model.width": 16}},
        {
            "name": "choose",
            "command": "select",
            "config": "stage.yaml",
            "set": {"model.init_from": "${pretrain.checkpoint}", "model.weights": [1, 2.5]},
        },
        {
            "name": "other",
            "command": "select",
            "config": "stage.yaml",
            "set": {"model.plain": True, "model.none": None},
        },
        {
            "name": "train",
            "command": "fit",
            "config": "stage.yaml",
            "set": {"data.labels": "${choose.labels}", "model.init_from": "${pretrain.checkpoint}"},
        },
    ],
}
INDEX = {
    "format": "usl-label-index",
    "version": 1,
    "dataset": {"name": "digits", "split": "train", "size": 1437, "fingerprint": "sha256:" + "0" * 64},
    "method": {"name": "usl", "seed": 0, "params": {}},
    "indices": [5, 2, 9],
    "labels": [0, 2, 2],
    "classes": ["a", "b", "c"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a chain and its stage's configuration."""
    monkeypatch.chdir(tmp_path)
    Path("stage.yaml").write_text(STAGE)
    write(CHAIN)
    return tmp_path


def write(chain: Any) -> Path:
    path = Path("chain.yaml")
    path.write_text(yaml.safe_dump(chain))
    return path


def changed(**keys: Any) -> dict[str, Any]:
    """The chain with keys of its last stage changed; None takes one away."""
    last = {**CHAIN["stages"][-1], **keys}
    return {**CHAIN, "stages": [*CHAIN["stages"][:-1], {k: v for k, v in last.items() if v is not None}]}


class Actor:
    """Plays the stages: notes what was launched and leaves what a stage leaves."""

    def __init__(self) -> None:
        self.launched: list[StageCommand] = []
        self.dies_in = ""

    def __call__(self, command: StageCommand, stage: Stage, launcher: list[str]) -> None:
        self.launched.append(replace(command))
        folder = StageFolder(command.run_dir)
        folder.begin(command.identity())
        if command.command == "fit":
            folder.last_checkpoint.parent.mkdir(exist_ok=True)
            folder.last_checkpoint.write_text(f"weights of {stage.name}")
        if stage.name == self.dies_in:
            raise UslError(f"stage {stage.name} was killed")
        if command.command == "select":
            folder.labels.write_text(json.dumps(INDEX))
        folder.finish(command.identity(), 1.25, {"test_accuracy": 0.5})

    @property
    def names(self) -> list[str]:
        """The stages launched since the last look."""
        names = [command.run_dir.name for command in self.launched]
        self.launched.clear()
        return names


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    actor = Actor()
    monkeypatch.setattr(pipeline, "_launch", actor)
    return actor


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which `usl run chain.yaml ARGUMENTS` is refused."""
    with pytest.raises(SystemExit) as stop:
        main(["run", "chain.yaml", *arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def run(*arguments: str) -> None:
    main(["run", "chain.yaml", *arguments])


# The file ------------------------------------------------------------------------------------------------


def test_a_chain_is_read() -> None:
    chain = Chain.read(Path("chain.yaml"))
    assert (chain.name, chain.seed) == ("chain", 4)
    assert [stage.name for stage in chain.stages] == ["pretrain", "choose", "other", "train"]
    assert [stage.needs() for stage in chain.stages] == [[], ["pretrain"], [], ["choose", "pretrain"]]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([1], "expected a mapping"),
        ({"seed": 1}, "not a chain, it has no 'stages:'"),
        ({"stages": []}, "stages: expected a list"),
        ({"stages": {"a": 1}}, "stages: expected a list"),
        ({**CHAIN, "sed": 1}, "unknown key 'sed' (did you mean 'seed'?)"),
        ({**CHAIN, "seed": "x"}, "seed: x is no seed; expected a whole number"),
        ({"stages": ["pretrain"]}, "stage 1: expected name, command, config, set"),
        (changed(sett={}), "stage train: unknown key 'sett' (did you mean 'set'?)"),
        (changed(name=None), "stage #4: 'name' is missing"),
        (changed(command=None), "stage train: 'command' is missing"),
        (changed(config=None), "stage train: 'config' is missing"),
        (changed(name="choose"), "stage name 'choose' must be unique"),
        (changed(name="a/b"), "stage name 'a/b' must be unique and of letters"),
        (changed(name=".."), "stage name '..' must be"),
        (changed(command="test"), "command 'test'; expected fit or select"),
        (changed(config="stag.yaml"), "stag.yaml: no such configuration"),
        (changed(set=[1]), "stage train: set: expected a mapping"),
        ({**CHAIN, "set": [1]}, "chain.yaml: set: expected a mapping"),
        (
            changed(set={"data.labels": "${chose.labels}"}),
            "takes from 'chose', which is no earlier stage (did you mean",
        ),
        (changed(set={"data.labels": "${train.labels}"}), "takes from 'train', which is no earlier stage"),
    ],
)
def test_a_wrong_chain_is_refused_with_file_and_key(
    content: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(content)
    said = refusal(capsys)
    assert line in said
    assert ("chain.yaml" in said) or "stag.yaml" in said
    assert not Path("runs").exists()


def test_any_stage_can_be_referred_to() -> None:
    stages = [{**CHAIN["stages"][0], "name": "pre-train_1"}, {**CHAIN["stages"][1], "set": {"a": "${pre-train_1.x}"}}]
    assert Chain.read(write({"stages": stages})).stages[1].needs() == ["pre-train_1"]


def test_what_a_chain_sets_is_set_for_every_stage_unless_it_has_its_own() -> None:
    stages = [{**CHAIN["stages"][0], "set": {"data.dir": "mine"}}, CHAIN["stages"][1]]
    chain = Chain.read(write({"set": {"data.dir": "photos", "data.channels": 1}, "stages": stages}))
    assert chain.stages[0].set == {"data.dir": "mine", "data.channels": "1"}
    assert chain.stages[1].set == {"data.dir": "photos", "data.channels": "1"} | {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in CHAIN["stages"][1].get("set", {}).items()
    }


def test_a_chain_finds_configurations_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    chain = Chain.read(tmp_path / "chain.yaml")
    assert {stage.config for stage in chain.stages} == {tmp_path / "stage.yaml"}


# The options ---------------------------------------------------------------------------------------------


def test_options() -> None:
    run = RunOptions.parse(
        ["chain.yaml", "--name", "mine", "--seed=7", "--out", "there", "--train.model.threshold", "0.7", "--wandb"]
    )
    assert (run.name, run.seed, run.out, run.wandb, run.dry_run) == ("mine", 7, Path("there"), "online", False)
    assert run.chain.stages[-1].set["model.threshold"] == "0.7"
    assert run.folder("train").path == Path("there/mine/train")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--sed", "3"], "unknown option --sed (did you mean 'seed'?)"),
        (["--seed", "x"], "--seed: x is no seed; expected a whole number"),
        (["--redo", "pretran"], "--redo pretran: expected one of the stages pretrain, choose"),
        (["--pretran.model.width", "3"], "unknown option --pretran.model.width"),
        (["--train", "3"], "unknown option --train"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in refusal(capsys, *arguments)
    assert not Path("runs").exists()


# Running -------------------------------------------------------------------------------------------------


def test_stages_run_in_order_with_what_earlier_ones_left(actor: Actor) -> None:
    run()
    commands = {command.run_dir.name: command for command in actor.launched}
    assert actor.names == ["pretrain", "choose", "other", "train"]
    assert [command.command for command in commands.values()] == ["fit", "select", "select", "fit"]
    checkpoint = "runs/chain/pretrain/checkpoints/last.ckpt"
    assert commands["pretrain"].overrides == {"seed_everything": "4", "model.width": "16"}
    assert commands["train"].overrides == {
        "seed_everything": "4",
        "data.labels": "runs/chain/choose/labels.json",
        "model.init_from": checkpoint,
    }
    # Values arrive with the type they have in the file.
    flat = commands["choose"].flat()
    assert (flat["model.init_from"], flat["model.weights"]) == (checkpoint, [1, 2.5])
    flat = commands["other"].flat()
    assert flat["model.plain"] is True
    assert flat["model.none"] is None
    assert all(command.ckpt_path is None for command in commands.values())


def test_a_reference_may_stand_in_a_list(actor: Actor) -> None:
    write(changed(set={"model.several": ["${pretrain.checkpoint}", "x"], "data.labels": "${choose.labels}"}))
    run()
    assert actor.launched[-1].flat()["model.several"] == ["runs/chain/pretrain/checkpoints/last.ckpt", "x"]


def test_a_command_line_means_the_same_stage(actor: Actor) -> None:
    run("--wandb", "offline")
    for command in actor.launched:
        line = command.arguments()
        assert StageCommand.parse(line[0], line[1:]) == command


def test_finished_stages_are_skipped(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    first = Path("runs/chain/train/stage.json").stat().st_mtime_ns
    _ = actor.names
    capsys.readouterr()
    run()
    assert actor.names == []
    assert capsys.readouterr().out.count("complete, skipped") == 4
    assert Path("runs/chain/train/stage.json").stat().st_mtime_ns == first


@pytest.mark.parametrize("stage", ["pretrain", "train"])
def test_an_interrupted_stage_is_resumed(actor: Actor, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    actor.dies_in = stage
    assert f"stage {stage} was killed" in refusal(capsys)
    before, actor.dies_in = actor.names, ""
    run()
    assert actor.launched[0].ckpt_path == "last"
    assert all(command.ckpt_path is None for command in actor.launched[1:])
    assert before[:-1] + actor.names == ["pretrain", "choose", "other", "train"]


def test_a_stage_whose_newest_checkpoint_is_lost_does_not_start_afresh(
    actor: Actor, capsys: pytest.CaptureFixture[str]
) -> None:
    actor.dies_in = "pretrain"
    refusal(capsys)
    folder = StageFolder(Path("runs/chain/pretrain"))
    folder.last_checkpoint.unlink()
    folder.last_checkpoint.symlink_to("step=00000009.ckpt")  # which is not there; an earlier one may be
    actor.dies_in = ""
    _ = actor.names
    run()
    assert actor.launched[0].ckpt_path == "last"
    assert actor.launched[0].checkpoint() == folder.last_checkpoint


def test_a_file_system_without_locks_does_not_stop_a_run(
    actor: Actor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    run()
    assert "runs/chain: this file system has no locks (Function not implemented)" in capsys.readouterr().err


def test_an_interrupted_selection_starts_again(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    actor.dies_in = "choose"
    refusal(capsys)
    actor.dies_in = ""
    _ = actor.names
    run()
    assert actor.launched[0].ckpt_path is None
    assert actor.names == ["choose", "other", "train"]


def test_a_changed_stage_stops_the_run_before_anything_runs(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    _ = actor.names
    capsys.readouterr()
    said = refusal(capsys, "--train.model.threshold", "0.7")
    assert "runs/chain/train: train was run with other settings: model.threshold was 0.9, now 0.7" in said
    assert "--redo train" in said
    assert "--name" in said
    assert actor.names == []
    assert "seed_everything was 4, now 5" in refusal(capsys, "--seed", "5")
    Path("stage.yaml").write_text(STAGE.replace("0.9", "0.8"))
    assert "pretrain was run with other settings: model.threshold was 0.9, now 0.8" in refusal(capsys)


def test_another_name_is_another_run(actor: Actor) -> None:
    run()
    _ = actor.names
    run("--name", "second", "--seed", "5")
    assert actor.names == ["pretrain", "choose", "other", "train"]
    assert Path("runs/second/train/stage.json").exists()


def test_redo_repeats_the_stage_and_what_depends_on_it(actor: Actor) -> None:
    run()
    _ = actor.names
    old = Path("runs/chain/choose/stage.json").read_text()
    run("--redo", "choose")
    assert actor.names == ["choose", "train"]
    assert Path("runs/chain/choose.old1/stage.json").read_text() == old, "nothing is overwritten"
    run("--redo", "pretrain")
    assert actor.names == ["pretrain", "choose", "train"]
    assert {path.name for path in Path("runs/chain").iterdir() if ".old" in path.name} == {
        "choose.old1", "choose.old2", "train.old1", "train.old2", "pretrain.old1",
    }  # fmt: skip
    run("--train.model.threshold", "0.7", "--redo", "train")
    assert actor.names == ["train"]


def test_a_dry_run_says_what_would_run_and_writes_nothing(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    run("--dry-run")
    assert capsys.readouterr().out.count("would run") == 4
    assert not Path("runs").exists()
    actor.dies_in = "choose"
    refusal(capsys)
    files = sorted(path for path in Path("runs").rglob("*") if path.name != ".lock")
    run("--dry-run")
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "complete, skipped", "would run", "would run", "would run",
    ]  # fmt: skip
    assert sorted(path for path in Path("runs").rglob("*") if path.name != ".lock") == files


def test_a_damaged_record_is_named(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    Path("runs/chain/choose/stage.json").write_text("{")
    capsys.readouterr()
    assert "runs/chain/choose/stage.json: cannot be read" in refusal(capsys)


def test_what_a_stage_did_not_leave_is_named(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    write(changed(set={"model.prior_file": "${pretrain.self_labels}"}))
    with pytest.raises(SystemExit):
        run()
    said = capsys.readouterr().err
    assert said.startswith("usl: ${pretrain.self_labels}: stage pretrain left no self_labels; it has checkpoint")
    assert said.count("\n") == 1


# The summary ---------------------------------------------------------------------------------------------


def test_summary_and_table(actor: Actor, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    summary = json.loads(Path("runs/chain/summary.json").read_text())
    assert (summary["run"], summary["seed"]) == ("chain", 4)
    assert [stage["name"] for stage in summary["stages"]] == ["pretrain", "choose", "other", "train"]
    assert summary["stages"][0]["outputs"] == {"checkpoint": "runs/chain/pretrain/checkpoints/last.ckpt"}
    expected = {
        "selection": "usl", "method": "method", "budget": 3, "classes_covered": 2, "class_counts": [1, 0, 2],
        "test_accuracy": 0.5, "labels": "runs/chain/choose/labels.json", "seconds": 1.2,
        "test_accuracy_median": None, "estimated_accuracy": None, "estimated_interval": None,
        "estimated_with_40_more": None,
    }  # fmt: skip
    assert summary["results"] == [expected]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4].split() == [
        "selection", "labels", "classes", "covered", "method", "test", "accuracy", "seconds",
    ]  # fmt: skip
    assert printed[-2].split() == ["usl", "3", "2", "of", "3", "method", "0.500", "1.2"]


def test_the_table_says_what_estimates_are_and_what_more_labels_bring() -> None:
    told = {"estimated_accuracy": 0.8, "estimated_interval": [0.7, 0.9], "selection": "usl", "method": "blend"}
    more, unknown = {**told, "estimated_with_40_more": 0.851}, {**told, "estimated_with_40_more": None}
    line = "estimated accuracy: by the labels alone, with a 90% interval"
    assert estimates({"results": [more]}) == [f"{line}; with 40 labels more about 0.85"]
    assert estimates({"results": [unknown, more]}) == [f"{line}; with 40 labels more about 0.85 (usl, blend)"]
    assert estimates({"results": [unknown]}) == [line]
    assert estimates({"results": [{**told, "estimated_accuracy": None}]}) == []


@pytest.mark.parametrize("content", ["[5, 2, 9]", json.dumps({**INDEX, "classes": [], "method": {}})])
def test_labels_of_the_users_own_are_summarised_too(actor: Actor, content: str) -> None:
    Path("mine.json").write_text(content)
    write(changed(set={"data.labels": "mine.json"}))
    run()
    result = json.loads(Path("runs/chain/summary.json").read_text())["results"][0]
    assert (result["selection"], result["budget"], result["class_counts"]) == ("mine", 3, [])
    assert "mine" in table({"results": [result]})


def test_without_a_test_set_there_is_no_accuracy(actor: Actor) -> None:
    run()
    record_path = Path("runs/chain/train/stage.json")
    record_path.write_text(json.dumps({**json.loads(record_path.read_text()), "metrics": {}}))
    summary = summarise(RunOptions.parse(["chain.yaml"]))
    assert summary["results"][0]["test_accuracy"] is None
    assert " - " in table(summary).splitlines()[-1]
