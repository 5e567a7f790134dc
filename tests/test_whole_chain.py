"""A chain or a table is refused before its first stage for what a later one would fail on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from usl_lightning.base.configs import find_config
from usl_lightning.base.parameters import needs_of, parameters
from usl_lightning.cli import main

DIGITS = "digits_usl_simclrv2.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "torn.ckpt").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "three.json").write_text("[1, 2, 3]")
    dataset = {"name": "cifar10", "split": "train", "size": 50_000, "fingerprint": "sha256:" + "0" * 64}
    method = {"name": "random", "seed": 0, "params": {}}
    index: dict[str, Any] = {"format": "usl-label-index", "version": 1, "dataset": dataset, "method": method}
    index |= {"classes": list("abcdefghij"), "indices": [1, 2, 3], "labels": [0, 1, 2]}
    (tmp_path / "other.json").write_text(json.dumps(index))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said where a command is refused, in one line, with nothing written."""
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n"), sorted(os.listdir())) == (2, "", 1, before)
    return said.err


@pytest.mark.parametrize(("word", "part"), [
    ("pretrain.model.init_from=text.txt", "pretrain: text.txt: not a readable checkpoint"),
    ("finetune.model.init_from=torn.ckpt", "finetune: torn.ckpt: not a readable checkpoint"),
    ("select.model.init_from=.", "select: model.init_from: .: is no file"),
    ("select.model.init_from=null", "select: model.init_from or model.backbone or model.features: must be given"),
    ("finetune.data.labels=null", "finetune: data.labels or data.oracle_labels: must be given"),
    ("distill.model.teacher_from=null", "distill: model.teacher_from: must be given; Distill does not do without"),
    ("distill.model.teacher_from=${pretrain.checkpoint}", "'pretrain' learns without labels and leaves no classifier"),
    ("finetune.data.labels=text.txt", "finetune: text.txt: a label index is a .json, .npy or .csv file"),
    ("finetune.data.labels=other.json", "chosen from cifar10/train (50000 images), but the data set"),
    ("finetune.data.labels=${select.self_labels}", "expected what a stage leaves as labels"),
    ("finetune.data.split=test", "'select' chooses from digits train, this stage has digits test"),
    ("select.model.keep_from=text.txt", "select: text.txt: a label index is"),
    ("select.model.init_from=${pretrain.weights}", "no such output; expected one of checkpoint, labels"),
    ("finetune.model.backbone=resnet18_cifar", "'pretrain' has model.backbone small, this stage resnet18_cifar"),
    ("finetune.data.dataset=cifar10", "finetune: data set cifar10 was not found: looked in nowhere"),
    ("finetune.data.class_list=text.txt", "data.class_list is for image folders; data set digits does not use it"),
    ("data.cache=kept", "data.cache is for image folders"),
    ("pretrain.checkpoint.every_step=5", "unknown key 'every_step' (did you mean 'every_steps'?)"),
    ("select.model.cache=text.txt", "model.cache: text.txt: is there already, and no folder; give another folder"),
    ("launcher=nosuchprogram", "--launcher nosuchprogram: No such file or program"),
    ("wandb=nope", "--wandb nope: expected online or offline"),
    ("pretrain.trainer.deterministic=maybe", "trainer.deterministic: expected true, false or warn, found maybe"),
    ("out=/proc/x", "/proc: is the system's own; choose another --name or --out"),
    ("out=text.txt/x", "text.txt: is there already, and no folder"),
])  # fmt: skip
def test_a_stage_that_would_fail(
    word: str, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USL_DATA", "nowhere")
    for more in ([], ["--dry-run"]):
        assert part in refused(capsys, "run", DIGITS, f"--{word}", *more)


def test_a_cache_that_cannot_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USL_CACHE", "text.txt/x")
    said = refused(capsys, "run", DIGITS, "--dry-run")
    assert said.startswith("usl: stage select: USL_CACHE: ")
    assert "text.txt: is there already, and no folder; give another folder" in said


def test_a_kept_index_counts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", DIGITS, "--dry-run", "--select.model.keep_from=three.json"]
    main([*words, "--select.model.budget=10"])
    capsys.readouterr()
    text = refused(capsys, *words, "--select.model.budget=2", "--select.model.clusters=2")
    assert "three.json holds 3 images, the budget is 2" in text


@pytest.mark.parametrize(("place", "key", "value", "part"), [
    ("train", "data.labels", "${pretrain.checkpoint}", "expected what a stage leaves as labels"),
    ("train", "model.init_from", "${select.checkpoint}", "checkpoint is what one of fit leaves"),
    ("train", "run_dir", "x", "run_dir: the chain sees to that for all of its stages"),
    ("train", "data.split", "test", "'select' chooses from digits train, this stage has digits test"),
    ("USL-T", "model.init_from", "${pretrain.checkpoint}", "'pretrain' learns no clusters"),
    ("--out", "", "/sys/x", "/sys: is the system's own"),
    ("--launcher", "", "nosuchprogram", "No such file or program"),
    ("--wandb", "", "nope", "usl table: --wandb nope: expected online or offline"),
])  # fmt: skip
def test_a_cell_that_would_fail(
    place: str, key: str, value: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = yaml.safe_load(find_config("digits_table.yaml").read_text())
    stages = {stage["name"]: stage for stage in table["stages"]} | {"USL-T": table["rows"]["USL-T"]["select"]}
    more = [f"{place}={value}"] if place.startswith("--") else []
    if not more:
        stages[place]["set"][key] = value
    Path("table.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    assert part in refused(capsys, "table", "table.yaml", "--dry-run", *more)


def test_a_stage_may_begin_from_other_networks(capsys: pytest.CaptureFixture[str]) -> None:
    """What is none of these mistakes is let through."""
    main(["run", DIGITS, "--dry-run", "--distill.model.backbone=resnet18_cifar", "--finetune.data.image_size=16"])
    main(["run", DIGITS, "--dry-run", "--wandb=offline", "--launcher=env"])
    assert capsys.readouterr().out.count("would run") == 8


@pytest.mark.parametrize("path", [
    "semisup.distill.Distill", "semisup.finetune.FineTune", "semisup.adapter.Adapter", "semisup.blend.Blend",
    "selection.usl.USL", "selection.uslt_selection.USLT", "selection.stratified.Stratified", "pretrain.taught.Taught",
    "selection.uherding.UHerding", "selection.margin.Margin", "data.modules.LabelledData",
    "data.modules.SemiSupervisedData", "features.neighbor_data.NeighborData",
])  # fmt: skip
def test_what_a_class_needs_it_takes(path: str) -> None:
    known = parameters(f"usl_lightning.{path}")
    needs = [name for need in needs_of(f"usl_lightning.{path}") for name in need.split(" or ")]
    assert needs
    assert set(needs) <= set(known)
    assert needs_of("usl_lightning.selection.random.Random") == needs_of("torch.nn.Linear") == ()
