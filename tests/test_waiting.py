"""`usl run` stops where images have yet to be labelled, and goes on once they are; a stand-in plays the stages."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from usl_lightning.chain import pipeline
from usl_lightning.chain.file import Stage
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.summary import summarise
from usl_lightning.cli import main
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.words import StageCommand

STAGE = "model: {class_path: timm.some.Method}\ndata: {class_path: timm.some.Data, init_args: {dataset: digits}}\n"
INDEX = {
    "format": "usl-label-index",
    "version": 1,
    "dataset": {"name": "folder", "split": "train", "size": 90, "fingerprint": "sha256:" + "0" * 64},
    "method": {"name": "usl", "seed": 0, "params": {}},
    "indices": [5, 2, 9],
    "labels": [None, None, None],
    "classes": [],
}


def stage(name: str, command: str = "fit", **settings: str) -> dict[str, Any]:
    keys = {"init_from": "model.init_from", "labels": "data.labels", "keep_from": "model.keep_from"}
    return {
        "name": name,
        "command": command,
        "config": "stage.yaml",
        "set": {keys[key]: f"${{{value}}}" for key, value in settings.items()},
    }


ONE_BRANCH = [
    stage("pretrain"),
    stage("choose", "select", init_from="pretrain.checkpoint"),
    stage("train", init_from="pretrain.checkpoint", labels="choose.labels"),
    stage("tune", init_from="train.checkpoint", labels="choose.labels"),
]
RANDOM_BRANCH = [
    stage("other"),
    stage("random", "select", init_from="other.checkpoint"),
    stage("train_random", labels="random.labels"),
    stage("apart"),
]
ROUNDS = [
    stage("first", "select"),
    stage("second", "select", keep_from="first.labels"),
    stage("train", labels="second.labels"),
]


@pytest.fixture(autouse=True)
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages launched; each leaves what it would leave, a selection images without labels."""
    names: list[str] = []

    def play(command: StageCommand, stage: Stage, launcher: list[str]) -> None:
        command.check()
        names.append(stage.name)
        folder = StageFolder(command.run_dir)
        folder.begin(command.identity())
        if command.command == "select":
            folder.labels.write_text(json.dumps(INDEX))
        else:
            folder.last_checkpoint.parent.mkdir(exist_ok=True)
            folder.last_checkpoint.write_text(stage.name)
        folder.finish(command.identity(), 1.0, {"test_accuracy": 0.5})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "_launch", play)
    Path("stage.yaml").write_text(STAGE)
    return names


def run(stages: list[dict[str, Any]], *arguments: str) -> int | None:
    """The exit code of `usl run` on these stages; None if it came to its end."""
    Path("own.yaml").write_text(yaml.safe_dump({"stages": stages}))
    try:
        main(["run", "own.yaml", *arguments])
    except SystemExit as stop:
        return stop.code  # type: ignore[return-value]
    return None


def answer(stage: str, labels: list[int | None], unsure: tuple[int, ...] = ()) -> None:
    path = Path(f"runs/own/{stage}/labels.json")
    path.write_text(json.dumps({**INDEX, "labels": labels, "classes": ["a", "b"], "unsure": unsure}))


def test_the_chain_stops_after_the_selection_and_goes_on_when_all_have_an_answer(
    launched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ONE_BRANCH) == 3
    assert launched == ["pretrain", "choose"]
    said = capsys.readouterr()
    assert "\n3 images to label: usl label runs/own/choose/labels.json\nthen repeat this command" in said.out
    assert said.err == ""
    assert not Path("runs/own/train").exists()
    assert not Path("runs/own/summary.json").exists()

    answer("choose", [1, None, None])
    assert run(ONE_BRANCH) == 3
    assert "2 images to label: usl label runs/own/choose/labels.json  # 1 of 3 are done\n" in capsys.readouterr().out
    answer("choose", [1, None, None], unsure=(2,))
    assert run(ONE_BRANCH) == 3
    assert "\n1 image to label: " in capsys.readouterr().out
    assert launched == ["pretrain", "choose"]

    answer("choose", [1, None, 0], unsure=(2,))
    assert run(ONE_BRANCH) is None
    assert launched == ["pretrain", "choose", "train", "tune"]
    assert "[2/4] choose: complete, skipped\n[3/4] train: fit" in capsys.readouterr().out
    summary = summarise(RunOptions.parse(["own.yaml"]))
    assert [result["budget"] for result in summary["results"]] == [2, 2]  # the unsure one taught nothing
    assert run(ONE_BRANCH) is None
    assert len(launched) == 4


def test_whoever_stops_early_has_what_is_answered(launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    early = [
        *ONE_BRANCH[:2],
        *({**one, "set": {**one["set"], "data.unanswered": "leave_out"}} for one in ONE_BRANCH[2:]),
    ]
    for labels in ([None, None, None], [1, None, None], [1, 1, None]):
        assert run(early) == 3
        answer("choose", labels)
    capsys.readouterr()
    assert run(early) == 3, "one class alone teaches nothing"
    assert "# 2 of 3 are done; it goes on as soon as two classes have a label\n" in capsys.readouterr().out
    answer("choose", [1, None, 0])
    assert run(early) is None
    assert launched == ["pretrain", "choose", "train", "tune"]
    assert [result["budget"] for result in summarise(RunOptions.parse(["own.yaml"]))["results"]] == [2, 2]
    answer("choose", [1, 1, 0])
    capsys.readouterr()
    assert run(early) == 2
    assert "--redo train" in capsys.readouterr().err
    assert run(early, "--redo", "train") is None
    assert launched[4:] == ["train", "tune"]


@pytest.mark.parametrize("kept", [(0, 1), (0, 1, None)])
def test_a_round_is_waited_for_until_some_of_it_is_answered(launched: list[str], kept: tuple[int | None, ...]) -> None:
    """The answers that it began with are of the round before; where no image is new, nobody is asked."""
    Path("kept.json").write_text(
        json.dumps({**INDEX, "indices": INDEX["indices"][: len(kept)], "labels": kept, "classes": ["a", "b"]})
    )
    keeps = {"set": {"model.keep_from": "kept.json"}}
    leaves_out = {"set": {"data.unanswered": "leave_out", "data.labels": "${second.labels}"}}
    early = [ROUNDS[1] | keeps, ROUNDS[2] | leaves_out]
    assert run(early) == 3
    answer("second", [0, 1, None])
    assert run(early) == (3 if len(kept) < 3 else None)
    answer("second", [0, 1, None], unsure=(9,))
    assert run(early) in (None, 2)
    assert launched == ["second", "train"]


def test_labels_changed_after_training_are_a_changed_stage(capsys: pytest.CaptureFixture[str]) -> None:
    run(ONE_BRANCH)
    answer("choose", [1, 1, 0])
    assert run(ONE_BRANCH) is None
    answer("choose", [1, 1, 1])
    capsys.readouterr()
    assert run(ONE_BRANCH) == 2
    assert "train was run with other settings: data.labels was" in capsys.readouterr().err


def test_all_selections_are_made_before_the_stop_and_nothing_else(
    launched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*ONE_BRANCH, *RANDOM_BRANCH]) == 3
    assert launched == ["pretrain", "choose", "other", "random"]
    out = capsys.readouterr().out
    assert "3 images to label: usl label runs/own/choose/labels.json\n3 images to label: usl label runs/own/ra" in out
    answer("choose", [0, 1, 1])
    assert run([*ONE_BRANCH, *RANDOM_BRANCH]) == 3
    assert launched[4:] == ["train", "tune"]
    assert "choose/labels.json" not in capsys.readouterr().out
    answer("random", [0, 1, 1])
    assert run([*ONE_BRANCH, *RANDOM_BRANCH]) is None
    assert launched[6:] == ["train_random", "apart"]


def test_a_selection_beside_labelled_images_waits_for_their_labels(launched: list[str]) -> None:
    assert run(ROUNDS) == 3
    assert launched == ["first"]
    answer("first", [0, 1, 1])
    assert run(ROUNDS) == 3
    assert launched == ["first", "second"]
    answer("second", [0, 1, 1])
    assert run(ROUNDS) is None
    assert launched == ["first", "second", "train"]


def test_a_dry_run_tells_what_is_waited_for(launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(ONE_BRANCH)
    capsys.readouterr()
    assert run(ONE_BRANCH, "--dry-run") is None
    assert "3 images to label: usl label" in capsys.readouterr().out
    assert run(ONE_BRANCH, "--dry-run", "--redo", "choose") is None
    assert "to label" not in capsys.readouterr().out
    assert launched == ["pretrain", "choose"]


def test_a_stage_run_alone_waits_too(launched: list[str]) -> None:
    run(ONE_BRANCH)
    assert run(ONE_BRANCH, "--only", "train") == 3
    assert run(ONE_BRANCH, "--only", "choose") is None
    assert launched == ["pretrain", "choose"]


def test_no_job_is_queued_that_would_wait(capsys: pytest.CaptureFixture[str]) -> None:
    run(ONE_BRANCH)
    capsys.readouterr()
    assert run([*ONE_BRANCH, *RANDOM_BRANCH], "--slurm") == 3
    out = capsys.readouterr().out
    assert [name for name in ("tune", "random", "train") if f"--only {name}" in out or f"--only={name}" in out] == [
        "random"
    ], out
    assert "3 images to label" in out


def test_training_on_unlabelled_images_is_refused_with_the_command_that_labels_them() -> None:
    Path("labels.json").write_text(json.dumps(INDEX))
    assert LabelIndex.read("labels.json").unlabelled == 3
    assert run([stage("train")], "--train.data.labels", "labels.json") == 2
