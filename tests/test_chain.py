"""`usl run`: a small chain, started again in every state it can be in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import Outcome, assert_same_run, environment, kill, together, usl

from usl_lightning.chain.process import can_fork

pytestmark = pytest.mark.slow

SMALL = {"model.backbone": "small_w16", "trainer.log_every_n_steps": 1, "checkpoint.every_steps": 2}
TRAIN = {**SMALL, "trainer.max_steps": 4, "data.batch_size": 8, "data.unlabelled_ratio": 3}
STAGES: list[dict[str, Any]] = [
    {
        "name": "pretrain",
        "command": "fit",
        "config": "digits_simclr.yaml",
        "set": {**SMALL, "trainer.max_steps": 6, "data.batch_size": 64},
    },
    {
        "name": "select_usl",
        "command": "select",
        "config": "digits_usl.yaml",
        "set": {"model.init_from": "${pretrain.checkpoint}"},
    },
    {"name": "select_random", "command": "select", "config": "digits_random.yaml"},
    *(
        {
            "name": f"train_{name}",
            "command": "fit",
            "config": "digits_fixmatch.yaml",
            "set": {**TRAIN, "model.init_from": "${pretrain.checkpoint}", "data.labels": f"${{select_{name}.labels}}"},
        }
        for name in ("usl", "random")
    ),
]
NAMES = [stage["name"] for stage in STAGES]


def write_chain(folder: Path, stages: list[dict[str, Any]], name: str = "chain.yaml") -> None:
    (folder / name).write_text(yaml.safe_dump({"seed": 0, "stages": stages}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/chain`, left alone; `elsewhere/killed`, without the random branch, killed once in each stage."""
    folder = tmp_path_factory.mktemp("chains")
    write_chain(folder, STAGES)
    write_chain(folder, [stage for stage in STAGES if "random" not in stage["name"]], "short.yaml")
    again = partial(usl, folder, "run", "short.yaml", "--name", "killed", "--out", "elsewhere")

    def interrupted() -> None:
        line = again(kill(3, stage="pretrain")).mistake
        assert "stage pretrain was killed by signal 9; the same command continues it" in line
        assert "pretrain: would resume" in again("--dry-run").done().out
        line = again(kill(0, "select", stage="select_usl")).mistake
        assert "stage select_usl was killed by signal 9" in line
        assert not (folder / "elsewhere/killed/select_usl/labels.json").exists()
        assert "stage train_usl was killed" in again(kill(3, stage="train_usl")).mistake
        done = again().done()
        assert "[1/3] pretrain: complete, skipped" in done.out
        assert "[3/3] train_usl: resuming digits_fixmatch.yaml" in done.out

    together(interrupted, lambda: usl(folder, "run", "chain.yaml").done())
    return folder


@pytest.fixture
def copy(folder: Path) -> Path:
    """The finished chain in a folder where it can be spoilt."""
    if (folder / "runs/copy").exists():
        shutil.rmtree(folder / "runs/copy")
    return shutil.copytree(folder / "runs/chain", folder / "runs/copy", symlinks=True)


def snapshot(run: Path) -> dict[str, int]:
    """When each file of a run was written, but those that sum it up."""
    files = (path for path in run.rglob("*") if not path.is_dir() and not path.name.startswith("summary"))
    return {str(path.relative_to(run)): path.lstat().st_mtime_ns for path in files if path.name != ".lock"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_summary(folder: Path) -> None:
    summary = read(folder / "runs/chain/summary.json")
    assert {key: summary[key] for key in ("run", "seed")} == {"run": "chain", "seed": 0}
    assert [stage["name"] for stage in summary["stages"]] == NAMES
    assert [stage["command"] for stage in summary["stages"]] == ["fit", "select", "select", "fit", "fit"]
    seconds = sum(stage["seconds"] for stage in summary["stages"])
    assert summary["seconds"] >= seconds - 1e-6
    assert seconds > 0
    pretrain, select, *_, train = summary["stages"]
    assert 0 < pretrain["metrics"]["knn_accuracy"] <= 1
    assert pretrain["outputs"] == {"checkpoint": "runs/chain/pretrain/checkpoints/last.ckpt"}
    assert select["outputs"] == {"labels": "runs/chain/select_usl/labels.json"}
    assert train["metrics"] == read(folder / "runs/chain/train_random/result.json")
    assert [result["selection"] for result in summary["results"]] == ["usl", "random"]
    for result in summary["results"]:
        index = read(folder / result["labels"])
        assert (result["method"], result["budget"]) == ("fixmatch", 10)
        assert result["class_counts"] == [index["labels"].count(label) for label in range(10)]
        assert result["classes_covered"] == len(set(index["labels"]))
        assert 0 <= result["test_accuracy"] <= 1


def test_a_killed_chain_ends_like_another(folder: Path) -> None:
    straight, killed = folder / "runs/chain", folder / "elsewhere/killed"
    for stage in ("pretrain", "train_usl"):
        assert_same_run(killed / stage, straight / stage, but=["usl_identity"])  # it has another hash of labels.json
    for key in ("indices", "labels", "dataset"):
        assert read(killed / "select_usl/labels.json")[key] == read(straight / "select_usl/labels.json")[key]
    assert (killed / "pretrain/checkpoints/last.ckpt").read_bytes() == (
        straight / "pretrain/checkpoints/last.ckpt"
    ).read_bytes()
    results = [read(path / "summary.json")["results"][0] for path in (straight, killed)]
    for result in results:
        del result["labels"], result["seconds"]
    assert results[0] == results[1]


def test_a_finished_chain_does_nothing_and_imports_nothing_heavy(folder: Path) -> None:
    before = snapshot(folder / "runs/chain")
    again = usl(folder, "run", "chain.yaml", PYTHONPROFILEIMPORTTIME="1").done()
    assert snapshot(folder / "runs/chain") == before
    assert [line for line in again.out.splitlines() if line.startswith("[")] == [
        f"[{i}/5] {name}: complete, skipped" for i, name in enumerate(NAMES, 1)
    ]
    modules = {line.rpartition("|")[2].strip() for line in again.err.splitlines() if line.startswith("import time:")}
    assert "usl_lightning.chain.pipeline" in modules
    assert not modules & {"torch", "numpy", "pytorch_lightning", "jsonargparse"}


@pytest.mark.parametrize(
    ("change", "stage", "said"),
    [
        (["--pretrain.trainer.max_steps", "7"], "pretrain", "trainer.max_steps was 6, now 7"),
        (["--train_usl.model.threshold", "0.5"], "train_usl", "model.threshold was 0.95, now 0.5"),
        (["--seed", "1"], "pretrain", "seed_everything was 0, now 1"),
    ],
)
def test_a_changed_stage_stops_the_chain(folder: Path, change: list[str], stage: str, said: str) -> None:
    before = snapshot(folder / "runs/chain")
    line = usl(folder, "run", "chain.yaml", *change).mistake
    assert f"runs/chain/{stage}: {stage} was run with other settings: {said}; " in line
    assert f"--redo {stage}" in line
    assert "--name" in line
    assert snapshot(folder / "runs/chain") == before


def test_a_trained_branch_is_tested_again(folder: Path) -> None:
    """By itself, without the checkpoint it once started from."""
    words = ["test", "--config", "digits_fixmatch.yaml", "--model.backbone", "small_w16"]
    words += ["--data.labels", "runs/chain/select_usl/labels.json", "--run_dir", "runs/chain/train_usl"]
    before = snapshot(folder / "runs/chain")
    told = usl(folder, *words, "--ckpt_path", "last").done().out
    result = read(folder / "runs/chain/train_usl/result.json")
    evaluation = read(folder / "runs/chain/train_usl/evaluation.json")
    for weights, suffix in (("ema", ""), ("online", "_online")):
        assert evaluation[weights]["accuracy"] == pytest.approx(result[f"test_accuracy{suffix}"])
    assert "evaluation.json" in told
    after = snapshot(folder / "runs/chain")
    assert before.pop("train_usl/evaluation.json") < after.pop("train_usl/evaluation.json")
    assert after == before


def test_dry_run_shows_and_leaves_nothing(folder: Path) -> None:
    new = usl(folder, "run", "chain.yaml", "--name", "new", "--seed", "1", "--dry-run").done().out
    assert new.splitlines() == [f"[{i}/5] {name}: would run" for i, name in enumerate(NAMES, 1)]
    assert not (folder / "runs/new").exists()
    redo = usl(folder, "run", "chain.yaml", "--redo", "select_usl", "--dry-run").done().out
    assert [line.split(": ")[1] for line in redo.splitlines()] == [
        "complete, skipped", "would run", "complete, skipped", "would run", "complete, skipped",
    ]  # fmt: skip


def test_redo_keeps_what_was_there(folder: Path, copy: Path) -> None:
    before = snapshot(copy)
    words = ["run", "chain.yaml", "--name", "copy", "--redo", "train_random", "--train_random.model.threshold", "0.5"]
    usl(folder, *words).done()
    after = snapshot(copy)
    aside = {f"train_random.old1/{name.removeprefix('train_random/')}" for name in before if "train_random" in name}
    assert {name for name in after if ".old1/" in name} == aside
    kept = [name for name in before if not name.startswith("train_random/") and name != "run.json"]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert read(copy / "train_random/stage.json")["identity"]["model.threshold"] == 0.5
    assert "model.threshold" in read(copy / "train_random.old1/stage.json")["identity"]


def test_a_redo_that_was_killed_does_not_pass_for_finished(folder: Path, copy: Path) -> None:
    words = ["run", "chain.yaml", "--name", "copy", "--pretrain.model.temperature", "0.4"]
    usl(folder, *words, "--redo", "pretrain", kill(3, stage="pretrain"))
    line = usl(folder, *words).mistake
    assert "select_usl was run with other settings: model.init_from was a file of other content" in line
    assert read(copy / "pretrain/stage.json")["status"] == "complete"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("select_usl/labels.json", "select_usl left no labels"),
        ("pretrain/checkpoints/last.ckpt", "pretrain left no checkpoint"),
    ],
)
def test_an_output_that_is_gone(folder: Path, copy: Path, file: str, said: str) -> None:
    (copy / file).unlink()
    shutil.rmtree(copy / "train_usl")
    line = usl(folder, "run", "chain.yaml", "--name", "copy").mistake
    assert said in line
    assert f"--redo {file.split('/')[0]}" in line
    assert not (copy / "train_usl").exists()


def test_labels_that_were_changed(folder: Path, copy: Path) -> None:
    index = read(copy / "select_usl/labels.json")
    index["labels"][0] = (index["labels"][0] + 1) % 10
    (copy / "select_usl/labels.json").write_text(json.dumps(index))
    line = usl(folder, "run", "chain.yaml", "--name", "copy").mistake
    assert "train_usl was run with other settings: runs/copy/select_usl/labels.json changed: 1 answer;" in line


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists():
        assert process.poll() is None, "the run ended before it wrote what was waited for"
        time.sleep(0.05)


def test_two_chains_in_one_folder(tmp_path: Path) -> None:
    write_chain(tmp_path, STAGES[:1])
    command = [sys.executable, "-m", "usl_lightning.cli", "run", "chain.yaml", kill(2, by="SIGSTOP", stage="pretrain")]
    first = subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True, text=True)
    try:
        wait_for(tmp_path / "runs/chain/pretrain/checkpoints/last.ckpt", first)
        for words in ([], ["--redo", "pretrain"]):
            line = usl(tmp_path, "run", "chain.yaml", *words).mistake
            assert "runs/chain: another run is using this folder" in line
        assert sorted(path.name for path in (tmp_path / "runs/chain").iterdir()) == [".lock", "pretrain", "run.json"]
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert "would resume" in usl(tmp_path, "run", "chain.yaml", "--dry-run").done().out


@pytest.mark.parametrize("by", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_stage_too_and_the_chain_goes_on_later(tmp_path: Path, by: str) -> None:
    write_chain(tmp_path, STAGES[:1])
    stopped = usl(tmp_path, "run", "chain.yaml", kill(3, by=by, parent=True, stage="pretrain"))
    assert stopped.code == 130, stopped
    assert "usl: interrupted; the same command continues" in stopped.err
    record = read(tmp_path / "runs/chain/pretrain/stage.json")
    assert record["status"] == "running"
    assert not (tmp_path / "runs/chain/summary.json").exists()
    assert "would resume" in usl(tmp_path, "run", "chain.yaml", "--dry-run").done().out


def test_a_signal_as_a_stage_starts_is_not_lost(tmp_path: Path) -> None:
    """SIGUSR1 comes to the chain before the stage has got as far as to heed it: all end, and the job is put back."""
    write_chain(tmp_path, STAGES[:1])
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\ndef tell(): os.kill(os.getppid(), signal.SIGUSR1)\n"
        "if 'run' in sys.orig_argv: os.register_at_fork(after_in_child=tell)\n"
    )
    fake = tmp_path / "bin/scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    found = f"{tmp_path}:{environment()['PYTHONPATH']}"
    path = {"PYTHONPATH": found, "PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}  # as in an interactive job: no process of SLURM's
    stopped = usl(tmp_path, "run", "chain.yaml", **path, **slurm)
    assert stopped.code == 130, stopped
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "usl: interrupted; the same command continues" in stopped.err


def test_a_killed_chain_leaves_no_stage_behind(tmp_path: Path) -> None:
    """Also not one that is at work, and that would keep the next run out."""
    write_chain(tmp_path, STAGES[:1])
    usl(tmp_path, "run", "chain.yaml", kill(2, parent=True, stage="pretrain")).killed()
    assert "[1/1] pretrain: resuming" in usl(tmp_path, "run", "chain.yaml").done().out


@pytest.mark.slow
def test_a_stage_of_two_processes(tmp_path: Path) -> None:
    """Lightning starts the second one by what it takes for the command line: the stage's, not the chain's."""
    write_chain(tmp_path, STAGES[:1])
    done = usl(tmp_path, "run", "chain.yaml", "--pretrain.trainer.devices", "2").done()
    assert done.out.count("[1/1] pretrain") == 1
    assert read(tmp_path / "runs/chain/pretrain/stage.json")["status"] == "complete"


def test_where_a_fork_would_leave_something_behind_python_starts_anew() -> None:
    over = threading.Event()
    beside = threading.Thread(target=over.wait)
    beside.start()
    try:
        assert not can_fork()
    finally:
        over.set()
        beside.join()


def test_the_mistake_of_a_stage_is_said_once(tmp_path: Path) -> None:
    write_chain(tmp_path, STAGES[:1])
    refused: Outcome = usl(tmp_path, "run", "chain.yaml", "--pretrain.model.backbone", "small_w17")
    assert "model.backbone: unknown 'small_w17' (did you mean 'small_w16'?)" in refused.mistake
    assert not (tmp_path / "runs/chain").exists()
