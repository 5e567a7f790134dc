"""The command line: what it refuses, in one line, leaving nothing behind, and how little it imports to do so."""

import importlib.metadata
import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from usl_lightning import cli
from usl_lightning.base.errors import UslError
from usl_lightning.cli import _how_to_go_on, main
from usl_lightning.engine.checkpoint_files import IDENTITY
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.words import StageCommand

SIMCLR, FIXMATCH, RANDOM, USL = (f"digits_{name}.yaml" for name in ("simclr", "fixmatch", "random", "usl"))
PLENTY = "99999"
MINE = """\
model:
  class_path: usl_lightning.pretrain.simclr.SimCLR
  init_args:
    backbone: small_w16
    temperature: 0.5
    knn_k: 20
    view:
      class_path: usl_lightning.data.views.SimCLRView
      init_args: {flip: false}
    optimizer: {name: sgd, lr: 0.3, weight_decay: 1.0e-4, schedule: cosine}
data:
  class_path: usl_lightning.data.modules.ImageData
  init_args:
    dataset: digits
    batch_size: 64
trainer:
  max_steps: 1
"""
Refusal = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with one configuration, and no data but what comes with a dependency."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE)
    monkeypatch.delenv("USL_DATA", raising=False)
    return tmp_path


def everything() -> set[Path]:
    """All files and folders here, but `runs` itself and the locks of runs that are there."""
    return {path for path in Path().rglob("*") if path.name not in ("runs", ".lock")}


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The one line that a command is refused with; what it left behind is an error."""

    def run(*arguments: str) -> str:
        before = everything()
        with pytest.raises(SystemExit) as stop:
            main([*arguments])
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("usl")
        assert everything() == before
        return printed.err.strip()

    return run


# Commands and configurations -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    out = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"usl {command}" in out or f" {command}" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"usl-lightning {importlib.metadata.version('usl-lightning')}\n"


def test_help_of_a_stage_lists_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", SIMCLR, "--help"])
    out = capsys.readouterr().out
    for name in ("--model.temperature", "--data.batch_size", "--trainer.max_steps", "--seed_everything"):
        assert name in out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fitt"], ["unknown command 'fitt' (did you mean 'fit'?)", "select"]),
        (["frobnicate"], ["unknown command 'frobnicate'; expected one of"]),
        (["fit"], ["--config FILE is missing"]),
        (["fit", "--config"], ["--config: its value is missing"]),
        (["fit", "--config", SIMCLR, "--run_dir"], ["--run_dir: its value is missing"]),
        (["fit", "--config", "digits_simcrl.yaml"], ["digits_simcrl.yaml: no such", f"did you mean '{SIMCLR}'?"]),
        (
            ["fit", "--config", "nowhere/digits_simclr.yaml"],
            ["nowhere/digits_simclr.yaml: no such configuration", f"did you mean '{SIMCLR}'?"],
        ),
        (["fit", "--config", SIMCLR, "extra"], ["unexpected argument 'extra'"]),
        (["fit", "--config", "digits_quickstart.yaml"], ["a chain of stages", "usl run digits_quickstart.yaml"]),
        (["fit", "--config", RANDOM, "--trainer.max_steps", "1"], ["digits_random.yaml is for usl select", "Random"]),
        (["select", "--config", SIMCLR], ["digits_simclr.yaml is for usl fit", "SimCLR"]),
        (["run"], ["expected a chain"]),
        (["run", "digits_quickstar.yaml"], ["did you mean 'digits_quickstart.yaml'?"]),
        (["run", SIMCLR], ["not a chain", "usl fit --config"]),
        (["fit", "--config", SIMCLR, "--wandb", "sometimes"], ["--wandb sometimes: expected online or offline"]),
        (["test", "--config", SIMCLR], ["usl test: --ckpt_path FILE is missing"]),
        (["predict", "--config", SIMCLR], ["usl predict: --ckpt_path FILE is missing"]),
    ],
)
def test_wrong_commands(arguments: list[str], parts: list[str], refusal: Refusal) -> None:
    line = refusal(*arguments)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [1\n", "line 2 is not valid YAML"),
        ("- 1\n", "expected a mapping of keys to values, found list"),
        ("", "expected a mapping of keys to values, found nothing"),
        ("\xff\xfe".encode("latin1"), "cannot be read"),
    ],
)
def test_damaged_configurations_are_named(content: str | bytes, part: str, refusal: Refusal) -> None:
    Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal("fit", "--config", "mine.yaml")
    assert line.startswith("usl: mine.yaml: ")
    assert part in line


def test_configurations_are_found_here_before_the_shipped_ones(refusal: Refusal) -> None:
    Path(SIMCLR).write_text("- 1")
    assert refusal("fit", "--config", "digits_simclr").startswith(f"usl: {SIMCLR}: expected a mapping")


# Keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("knn_k:", "knn_kk:", ["model.knn_kk: unknown key 'knn_kk' (did you mean 'knn_k'?)"]),
        ("{flip: false}", "{flipp: false}", ["model.view.flipp: unknown key 'flipp' (did you mean 'flip'?)"]),
        ("schedule: cosine", "schedul: cosine", ["model.optimizer.schedul", "did you mean 'schedule'?"]),
        ("max_steps:", "max_step:", ["trainer.max_step: ", "did you mean 'max_steps'?"]),
        ("batch_size:", "batch_sise:", ["data.batch_sise", "did you mean 'batch_size'?"]),
        ("trainer:", "extra: 1\ntrainer:", ["unknown key 'extra'"]),
        ("simclr.SimCLR\n", "simclr.SimCRL\n", ["model.class_path", "did you mean 'SimCLR'?"]),
        ("pretrain.simclr.SimCLR", "pretrain.simclear.SimCLR", ["model.class_path", "simclear"]),
        ("schedule: cosine", "schedule: cosin", ["model.optimizer.schedule: expected one of 'cosine'", "found cosin"]),
        ("knn_k: 20", "knn_k: many", ["model.knn_k: expected int, found many"]),
    ],
)
def test_wrong_keys_in_a_file(old: str, new: str, parts: list[str], refusal: Refusal) -> None:
    assert old in MINE
    Path("mine.yaml").write_text(MINE.replace(old, new))
    line = refusal("fit", "--config", "mine.yaml")
    assert line.startswith("usl: mine.yaml: ")
    for part in parts:
        assert part in line


@pytest.mark.parametrize(("option", "said"), [
    ("--model=os.system", "--model: os.system is no Method; expected package.module.Class of one"),
    ("--model.class_path=os.system", "--model.class_path: os.system is no Method"),
    ("--model.class_path=nope.X", "--model.class_path: there is no class nope.X"),
    ("--model=", "--model: expected the name of a class, package.module.Class, found nothing"),
    ("--data=torch.nn.Linear", "--data: torch.nn.Linear is no ImageData"),
    ("--model.view={class_path: os.system}", "--model.view: os.system is no Module"),
    ("--model.optimizer=os.system", "--model.optimizer: expected parameters of Optimization, found os.system"),
    ("--model.optimizer.class_path=os.system", "--model.optimizer.class_path: os.system is no Optimization"),
    ("--trainer.logger=CSVLogger", "--trainer.logger: CSVLogger needs save_dir"),
    ("--trainer.callbacks=[{class_path: os.system}]", "--trainer.callbacks: os.system is no Callback"),
    ("--trainer.callbacks=os.system", "--trainer.callbacks: os.system is no Callback"),
    ("--trainer=null", "--trainer: expected keys and values, found null"),
    ("--trainer.barebones=true", "--trainer.barebones: True is a trial with some of the images"),
    ("--model.=1", "unexpected argument '--model.'; expected --key value"),
    ("--model..x=1", "unexpected argument '--model..x'"),
])  # fmt: skip
def test_what_is_no_class_is_one_line(option: str, said: str, refusal: Refusal) -> None:
    line = refusal("fit", "--config", "digits_simclr.yaml", option)
    assert said in line
    assert len(line) < 200


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--model.temprature", "1", ["did you mean 'temperature'?"]),
        ("--model.temp", "1", ["unknown key 'temp'"]),
        ("--model.view.flipp", "true", ["did you mean 'flip'?"]),
        ("--model.optimizer.lrr", "1", ["did you mean 'lr'?"]),
        ("--data.batch_siz", "8", ["did you mean 'batch_size'?"]),
        ("--trainer.max_step", "3", ["did you mean 'max_steps'?"]),
        ("--trainer.max", "3", ["unknown key"]),
        ("--mdel.temperature", "3", ["unknown key"]),
        ("--seed", "3", ["unknown key"]),
        ("--data.seed", "3", ["unknown key"]),
        ("--model", "SimCLR2", ["there is no class SimCLR2"]),
        ("--model.view", "Weakk", ["there is no class Weakk"]),
        ("--model.knn_k", "many", ["expected int, found many"]),
        ("--model.optimizer.lr", "fast", ["expected float, found fast"]),
        ("--model.optimizer.name", "sgdd", ["expected one of 'sgd', 'adam', 'adamw', 'lars', found sgdd"]),
        ("--data.workers", "x", ["expected int, found x"]),
        ("--trainer.precision", "7", ["unknown '7'", "bf16-mixed"]),
        ("--seed_everything", "x", ["x is no seed", "expected a whole number from 0"]),
    ],
)
def test_wrong_keys_on_the_command_line(
    option: str, value: str, parts: list[str], before: bool, refusal: Refusal
) -> None:
    """No abbreviations; before and after --config."""
    words = ["--config", "mine.yaml"]
    line = refusal("fit", *([option, value, *words] if before else [*words, option, value]))
    assert line.startswith(f"usl: {option}: ")
    for part in parts:
        assert part in line


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("equals", [True, False])
def test_the_command_line_beats_the_file_from_either_side(before: bool, equals: bool) -> None:
    given = {
        "model.temperature": "0.25",
        "model.optimizer.lr": "1e-2",
        "model.view.strength": "1.0",
        "seed_everything": "7",
    }
    options = [word for k, v in given.items() for word in ([f"--{k}={v}"] if equals else [f"--{k}", v])]
    words = ["--config", "mine.yaml"]
    stage = StageCommand.parse("fit", [*options, *words] if before else [*words, *options])
    config = StageCLI(stage).resolved()
    model = config["model"]["init_args"]
    assert (model["temperature"], model["optimizer"]["lr"]) == (0.25, 0.01)
    assert model["view"]["init_args"] == {**model["view"]["init_args"], "strength": 1.0, "flip": False}
    assert config["seed_everything"] == 7
    assert model["optimizer"]["weight_decay"] == 1e-4, "the rest of the group stays as in the file"


def test_later_files_beat_earlier_ones() -> None:
    Path("more.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"knn_k": 5}}}))
    stage = StageCommand.parse("fit", ["--config", "mine.yaml", "--config", "more.yaml"])
    assert StageCLI(stage).resolved()["model"]["init_args"]["knn_k"] == 5
    assert stage.flat()["model.knn_k"] == 5


def test_what_looks_at_a_stage_by_its_own_configuration_means_its_folder() -> None:
    Path("runs/a/train").mkdir(parents=True)
    Path("runs/a/train/config.yaml").write_text(MINE)
    words = ["--config", "runs/a/train/config.yaml"]
    assert StageCommand.parse("predict", words).run_dir == Path("runs/config"), "no stage has run there"
    Path("runs/a/train/stage.json").write_text("{}")
    assert StageCommand.parse("predict", words).run_dir == Path("runs/a/train")
    assert StageCommand.parse("predict", [*words, "--run_dir", "other"]).run_dir == Path("other")
    assert StageCommand.parse("fit", words).run_dir == Path("runs/config"), "a new run"


def test_a_class_replaced_by_an_override_takes_its_arguments_with_it() -> None:
    Path("mine.yaml").write_text(MINE.replace("{flip: false}", "{strength: 0.7, flip: false}"))
    view = {"class_path": "usl_lightning.data.views.SmallGreyView", "init_args": {"degrees": 3.0}}
    stage = StageCommand.parse("fit", ["--config", "mine.yaml", f"--model.view={json.dumps(view)}"])
    found = StageCLI(stage, build=False).resolved()["model"]["init_args"]["view"]
    assert found["class_path"] == view["class_path"]
    assert found["init_args"]["degrees"] == 3
    assert "strength" not in found["init_args"]
    stage.overrides["model.knn_kk"] = "3"
    with pytest.raises(UslError, match="knn_kk"):
        StageCLI(stage, build=False).resolved()


def test_the_seed_reaches_the_data() -> None:
    stage = StageCommand.parse("fit", ["--config", SIMCLR, "--seed_everything", "11"])
    assert StageCLI(stage).datamodule.seed == 11


# Data, values, folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--data.dataset", "cifar10", "--data.dir", "nowhere"],
            ["looked in nowhere/cifar-10-batches-py", "--data.dir"],
        ),
        (["--data.dataset", "cifar10"], ["cifar10 was not found: looked in", "USL_DATA", "--data.download true"]),
        (["--data.dataset", "folder", "--data.dir", "nowhere"], ["nowhere", "--data.dir"]),
        (["--data.dataset", "digit"], ["'digit'", "did you mean 'digits'?"]),
        (["--data.batch_size", "0"], ["--data.batch_size: 0 is out of range; expected 1 or more"]),
        (["--trainer.max_steps", "0"], ["trainer.max_steps: ", "expected 1 or more"]),
        (["--trainer.devices", "abc"], ["trainer.devices: expected a number of devices, auto, or a list", "abc"]),
        (["--model.backbone", "smal"], ["model.backbone: unknown 'smal' (did you mean 'small'?)"]),
        (["--model.init_from", "none.ckpt"], ["model.init_from: no such file: none.ckpt"]),
        (["--ckpt_path", "last"], ["--ckpt_path last: runs/digits_simclr/checkpoints/last.ckpt does not exist"]),
        (["--ckpt_path", "none.ckpt"], ["--ckpt_path: no such checkpoint: none.ckpt"]),
    ],
)
def test_wrong_values(arguments: list[str], parts: list[str], refusal: Refusal) -> None:
    line = refusal("fit", "--config", SIMCLR, *arguments)
    for part in parts:
        assert part in line
    assert not Path("runs/digits_simclr").exists()


@pytest.mark.parametrize(
    ("budget", "part"),
    [
        ("0", "--model.budget: 0 is out of range; expected 1 or more"),
        ("-2", "--model.budget: -2 is out of range; expected 1 or more"),
        (PLENTY, f"model.budget: {PLENTY} images cannot be picked from 1437"),
        ("ten", "--model.budget: expected int, found ten"),
    ],
)
def test_wrong_budgets(budget: str, part: str, refusal: Refusal) -> None:
    assert part in refusal("select", "--config", RANDOM, "--model.budget", budget)
    assert not Path("runs/digits_random").exists()


@pytest.mark.parametrize("target", ["file/run", "file"])
def test_an_output_folder_that_cannot_be_written(target: str, refusal: Refusal) -> None:
    Path("file").write_text("mine")
    assert refusal("fit", "--config", SIMCLR, "--run_dir", target).startswith(f"usl: {target}: cannot be written")
    assert Path("file").read_text() == "mine"


def test_a_run_is_never_overwritten(refusal: Refusal) -> None:
    stage = StageCommand.parse("fit", ["--config", SIMCLR])
    StageFolder(stage.run_dir).finish(stage.identity(), 1.0, {})
    assert "holds a finished run; continue it with --ckpt_path last" in refusal("fit", "--config", SIMCLR)


def test_a_folder_in_use_is_refused(refusal: Refusal) -> None:
    with StageFolder(Path("runs/digits_simclr")).locked():
        assert "another run is using this folder" in refusal("fit", "--config", SIMCLR)


# Label indices -------------------------------------------------------------------------------------------

INDEX: dict[str, Any] = {
    "format": "usl-label-index",
    "version": 1,
    "dataset": {"name": "digits", "split": "train", "size": 1437, "fingerprint": "sha256:" + "0" * 64},
    "method": {},
    "indices": [1, 2],
    "labels": [0, 1],
    "classes": [str(i) for i in range(10)],
}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "labels.json: label index cannot be read (No such file"),
        ("[1, 2", "labels.json: not JSON"),
        ("[1, 2, 1]", "entry 2: index 1 is there twice"),
        (f"[1, {PLENTY}]", f"entry 1: index {PLENTY} is out of range"),
        ("[1, -1]", "entry 1: index -1 is not a whole number"),
        ("[]", "labels.json: no entry"),
        (json.dumps(INDEX), "labels.json: chosen from digits/train"),
        (json.dumps({**INDEX, "labels": [0, None]}), "labels.json: 1 of 2 images have no label yet"),
        (json.dumps({**INDEX, "labels": [0, 10]}), "entry 1: label 10 is out of range"),
        (json.dumps({**INDEX, "labls": []}), "unknown key 'labls' (did you mean 'labels'?)"),
    ],
)
def test_wrong_label_indices(content: str | None, part: str, refusal: Refusal) -> None:
    if content is not None:
        Path("labels.json").write_text(content)
    assert part in refusal("fit", "--config", FIXMATCH, "--data.labels", "labels.json")
    assert not Path("runs/digits_fixmatch").exists()


def test_labels_must_be_given(refusal: Refusal) -> None:
    assert "data.labels" in refusal("fit", "--config", FIXMATCH)


# Checkpoints ---------------------------------------------------------------------------------------------


class Evil:
    """A pickle that makes a folder when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def write_checkpoint(kind: str) -> None:
    path = Path("some.ckpt")
    if kind == "evil torch file":
        torch.save({"state_dict": Evil()}, path)
    elif kind == "evil pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "weights of another program":
        torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)
    elif kind == "a tensor":
        torch.save(torch.zeros(1), path)
    else:
        identity = {"model.class_path": "usl_lightning.semisup.fixmatch.FixMatch", "model.threshold": 0.9}
        torch.save({IDENTITY: identity, "state_dict": {}}, path)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("evil torch file", "some.ckpt: not a readable checkpoint"),
        ("evil pickle", "some.ckpt: not a readable checkpoint"),
        ("text", "some.ckpt: not a readable checkpoint"),
        ("weights of another program", "some.ckpt: not a checkpoint of `usl fit`"),
        ("a tensor", "some.ckpt: holds a Tensor; expected a checkpoint"),
        ("another class", "to start from its encoder use --model.init_from"),
    ],
)
def test_foreign_checkpoints_are_refused(kind: str, part: str, refusal: Refusal) -> None:
    write_checkpoint(kind)
    for command in ("fit", "test"):
        line = refusal(command, "--config", SIMCLR, "--ckpt_path", "some.ckpt")
        assert part in line
    if kind != "another class":
        assert "some.ckpt: " in refusal("fit", "--config", SIMCLR, "--model.init_from", "some.ckpt")
        assert "some.ckpt: " in refusal("select", "--config", USL, "--model.init_from", "some.ckpt")
    assert not Path("pwned").exists()
    assert not Path("runs/digits_simclr").exists()


def test_selection_by_features_needs_a_checkpoint(refusal: Refusal) -> None:
    assert "model.init_from" in refusal("select", "--config", USL)


def test_a_changed_parameter_is_not_continued(refusal: Refusal) -> None:
    stage = StageCommand.parse("test", ["--config", "mine.yaml"])
    flat = {key: value for key, value in stage.flat().items() if key.startswith("model.")}
    torch.save({IDENTITY: {**flat, "model.temperature": 0.1}, "state_dict": {}}, "some.ckpt")
    assert "model.temperature was 0.1, now 0.5" in refusal("test", "--config", "mine.yaml", "--ckpt_path", "some.ckpt")


# How errors leave ----------------------------------------------------------------------------------------


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fitt", "--debug"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("usl: unknown command 'fitt'")


def test_an_interruption_has_its_own_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["run", "x"])
    assert stop.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_mistake_is_found_behind_other_errors_and_a_bug_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrapped(words: list[str]) -> None:
        try:
            raise UslError("the mistake")
        except UslError as error:
            raise RuntimeError("a library") from error

    def bug(words: list[str]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_dispatch", wrapped)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().err == "usl: the mistake\n"
    monkeypatch.setattr(cli, "_dispatch", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        main([])


def test_a_program_that_reads_no_further_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m usl_lightning.cli configs | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (len(done.stdout), done.stderr) == (10, "")


# What is not imported ------------------------------------------------------------------------------------

FRONT = [
    ["--help"],
    ["--version"],
    ["configs"],
    ["fitt"],
    ["fit"],
    ["fit", "--config", "digits_simcrl.yaml"],
    ["fit", "--config", "broken.yaml"],
    ["fit", "--config", "digits_quickstart.yaml"],
    ["fit", "--config", SIMCLR, "--ckpt_path", "last"],
    ["fit", "--config", SIMCLR, "--ckpt_path", "none.ckpt"],
    ["fit", "--config", SIMCLR, "--model.init_from", "none.ckpt"],
    ["fit", "--config", SIMCLR, "--data.dataset", "digit"],
    ["fit", "--config", SIMCLR, "--data.dataset", "cifar10", "--data.dir", "nowhere"],
    ["fit", "--config", SIMCLR, "--run_dir", "broken.yaml/x"],
    ["fit", "--config", SIMCLR, "--wandb", "sometimes"],
    ["fit", "--config", FIXMATCH, "--data.labels", "none.json"],
    ["fit", "--config", FIXMATCH, "--data.labels", "twice.json"],
    ["fit", "--config", FIXMATCH, "--data.labels", "nulls.json"],
    ["select", "--config", RANDOM, "--model.budget", "0"],
    ["init"],
    ["init", "nowhere"],
    ["run"],
    ["run", SIMCLR],
    ["run", "digits_quickstart.yaml", "--sed", "1"],
    ["run", "digits_quickstart.yaml", "--dry-run"],
]


def test_the_front_imports_nothing_heavy() -> None:
    """Importing torch and Lightning takes seconds; help, lists and refusals do without."""
    Path("broken.yaml").write_text("a: [1\n")
    Path("twice.json").write_text("[1, 1]")
    Path("nulls.json").write_text(json.dumps({**INDEX, "labels": [None, None]}))
    code = f"""
import json, sys
from usl_lightning.cli import _how_to_go_on, main
for words in {FRONT!r}:
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 2, words
    heavy = {{name.split(".")[0] for name in sys.modules}} & {{"torch", "pytorch_lightning", "lightning_fabric",
        "torchvision", "timm", "sklearn", "jsonargparse", "wandb", "faiss"}}
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    quiet = [words for words in FRONT if words[0] in ("--help", "--version", "configs") or words[-1] == "--dry-run"]
    assert len(lines) == len(FRONT) - len(quiet)
    assert all(line.startswith(("usl: ", "usl ")) for line in lines)


PATHS = f"import sys; sys.path[:] = {sys.path!r}\n"

STOPPED_IN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from usl_lightning.cli import main
main([{command!r}])
"""


@pytest.mark.parametrize("module", ["traceback", "usl_lightning.base.commands", "usl_lightning.base.documents", "yaml"])
def test_ctrl_c_while_the_command_itself_is_imported(module: str) -> None:
    code = STOPPED_IN.format(module=module, command="configs")
    ended = subprocess.run([sys.executable, "-S", "-c", PATHS + code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "usl: interrupted\n")


def test_ctrl_c_that_an_import_swallowed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As NumPy's does, which then lacks a module."""

    def importing(words: list[str]) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("module 'numpy._core' has no attribute '_multiarray_umath'")

    monkeypatch.setattr("usl_lightning.cli._dispatch", importing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["select", "--config=x.yaml"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stop.value.code, capsys.readouterr().err) == (130, "usl: interrupted; the same command begins again\n")


def test_how_an_interrupted_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", "digits_simclr.yaml"]
    assert _how_to_go_on(fit) == "; nothing was saved, the same command begins again"
    checkpoints = tmp_path / "runs/digits_simclr/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").symlink_to("step=00000003.ckpt")
    assert _how_to_go_on(fit) == "; --ckpt_path last continues"
    assert _how_to_go_on(["run", "chain.yaml"]) == "; the same command continues"
    assert _how_to_go_on(["select", "--config", "digits_usl.yaml"]) == "; the same command begins again"
    assert _how_to_go_on(["doctor"]) == ""


def test_the_files_of_a_folder_are_meant_before_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.yaml").write_text("{}")
    for name, near in (("photo.yaml", " (did you mean 'photos.yaml'?)"), ("runs/train/config.yaml", "")):
        with pytest.raises(SystemExit):
            main(["run", name])
        said = f"{name}: no such configuration here or among the shipped ones{near}; `usl configs`"
        assert said in capsys.readouterr().err
