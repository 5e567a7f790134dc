"""A chain or a table is refused before its first stage for what a later one would fail on."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from usl_lightning.base.configs import find_config
from usl_lightning.base.errors import UslError
from usl_lightning.base.parameters import needs_of, parameters
from usl_lightning.base.peek import peek
from usl_lightning.cli import main
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, init_encoder
from usl_lightning.models.heads import VOTES
from usl_lightning.stage.taken import HEADS, check_network_in

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
    digits = {**index, "dataset": {**dataset, "name": "digits", "size": 1437}}
    (tmp_path / "unanswered.json").write_text(json.dumps({**digits, "labels": [0, None, 2]}))
    (tmp_path / "test.json").write_text(json.dumps({**digits, "dataset": {**digits["dataset"], "split": "test"}}))
    (tmp_path / "digits.json").write_text(json.dumps(digits))
    np.save(tmp_path / "features.npy", np.zeros((1437, 2), np.float32))
    np.save(tmp_path / "two.npy", np.zeros((2, 2), np.float32))
    np.savez(tmp_path / "two.npz", a=np.zeros(2))
    (tmp_path / "photos/cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/cat/a.png")
    for name, backbone in (("small", "small"), ("wide", "small_w64")):
        write(tmp_path / f"{name}.ckpt", Encoder(backbone, ImageSpec(1, 8, 8, (0.5,), (0.5,))))
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "plain.ckpt")
    torch.save({"state_dict": {}, ENTRY: {"spec": {"backbone": ""}, "prefixes": {}}}, tmp_path / "features.ckpt")
    return tmp_path


def write(path: Path, encoder: Encoder) -> None:
    """A checkpoint of an encoder that learned without labels."""
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, ENTRY: encoder_entry(encoder, online="encoder.")}, path)


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
    ("pretrain.trainer.max_time=00:00:00:00", "trainer.max_time: 00:00:00:00 is over before 300 steps are taken"),
    ("pretrain.trainer.max_time={hour: 1}", "trainer.max_time: expected DD:HH:MM:SS"),
    ("pretrain.trainer.max_time={days: .inf}", "trainer.max_time: expected DD:HH:MM:SS"),
    ("pretrain.trainer.max_time={milliseconds: 2}", "is over before 300 steps are taken; give a longer one"),
    ("pretrain.model.backbone=resnet18", "'resnet18' looks at images of 32 pixels a side or more, these have 8"),
    ("pretrain.data.image_size=3", "'small' looks at images of 4 pixels a side or more, these have 3"),
    ("select.model.init_from=features.ckpt", "holds no network, its features came from a file"),
    ("select.model.init_from=plain.ckpt", "model.init_from: plain.ckpt: holds no encoder; expected a checkpoint"),
    ("select.model.weights=ema --select.model.init_from=small.ckpt", "holds no ema weights; it has online"),
    ("select.data.image_size=16 --select.model.init_from=small.ckpt", "was trained on images of 8×8 pixels, these"),
    ("finetune.model.init_from=wide.ckpt", "holds the network 'small_w64', this stage has model.backbone small"),
    ("distill.model.teacher_from=small.ckpt", "holds no classifier; expected a checkpoint of a stage that trains with"),
    ("finetune.data.labels=unanswered.json", "1 of 3 images have no label yet"),
    ("finetune.data.labels=test.json", "but data.split is train; expected the same"),
    ("select.model.features=features.npy", "model.init_from and model.features: are given; expected one source"),
    ("pretrain.compile=true --pretrain.activation_checkpointing=true", "a compiled network decides itself"),
    ("pretrain.trainer.val_check_interval=3 --pretrain.trainer.accumulate_grad_batches=2", "use 2 or 4"),
    ("select.model.features=two.npz --select.model.init_from=null", "holds no array named 'features'"),
    ("pretrain.data.class_path=usl_lightning.features.neighbor_data.NeighborData", "data.dataset: must be given"),
    ("pretrain.trainer.max_epochs=0", "trainer.max_epochs: 0 is over before the first step"),
    ("pretrain.trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {save_top_k: 2}}]", "without a monitor"),
    ("data.dataset=arrays --data.dir=features.npy", "features.npy: the images are <f4 [1437, 2], expected uint8"),
    ("select.data.subset_file=three.json", "20 images cannot be picked from 3"),
    ("pretrain.trainer.devices=3 --pretrain.data.batch_size=16", "16 images cannot be divided over 3 processes"),
    ("slurm-header=text.txt", "usl run: --slurm-header: is for jobs of SLURM"),
    ("data.dataset=folder --data.dir=photos --data.labels_file=small.ckpt", "not in UTF-8"),
    ("data.dataset=folder --data.dir=photos --data.class_list=text.txt", "no folder hello in"),
    ("pretrain.trainer.logger=CSVLogger --pretrain.trainer.logger.save_dir=text.txt", "text.txt: is there already"),
    ("pretrain.trainer.logger=[{class_path: CSVLogger, init_args: {save_dir: /proc/x}}]", "is the system's own"),
    ("wandb=online", "wandb: not logged in; run `wandb login` or set WANDB_API_KEY, or use --wandb offline"),
    ("pretrain.trainer.logger=WandbLogger", "WandbLogger: not logged in; run `wandb login` or set WANDB_API_KEY, or"),
    ("pretrain.trainer.logger=[{class_path: pytorch_lightning.loggers.WandbLogger}]", "WandbLogger: not logged in"),
    ("pretrain.trainer.logger=[{class_path: WandbLogger, init_args: {projekt: x}}]", "WandbLogger takes no 'projekt'"),
    ("out=/proc/x", "/proc: is the system's own; choose another --name or --out"),
    ("out=text.txt/x", "text.txt: is there already, and no folder"),
])  # fmt: skip
def test_a_stage_that_would_fail(
    word: str, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USL_DATA", "nowhere")
    _nobody_is_logged_in(monkeypatch)
    for more in ([], ["--dry-run"]):
        assert part in refused(capsys, "run", DIGITS, *(f"--{each}" for each in word.split(" --")), *more)


def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "nowhere")
    monkeypatch.setenv("HOME", str(Path("home").absolute()))


@pytest.mark.parametrize(("words", "key"), [
    ("--wandb=offline", None), ("--wandb=online", "k"), ("--pretrain.trainer.logger=WandbLogger", "k"),
    ("--pretrain.trainer.logger=WandbLogger --pretrain.trainer.logger.offline=true", None),
    ("--pretrain.trainer.logger=WandbLogger --pretrain.trainer.logger.group=g", "k"),
])  # fmt: skip
def test_a_diary_that_can_be_begun(words: str, key: str | None, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nobody_is_logged_in(monkeypatch)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    main(["run", DIGITS, "--dry-run", *words.split()])


@pytest.fixture
def folder(here: Path) -> Path:
    """Four images of two classes in `pets`, of one size, and a chain of one stage of them."""
    for number, name in enumerate(("cat/a", "cat/b", "dog/c", "dog/d")):
        (here / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(here / f"pets/{name}.png")
    chain = {"name": "choose", "command": "select", "config": "folder_random.yaml"}
    (here / "chain.yaml").write_text(json.dumps({"stages": [chain], "set": {"data.dir": "pets", "model.budget": 2}}))
    return here


@pytest.mark.parametrize(("rows", "words", "part"), [
    ("cat/a.png,x\ncat/nope.png,y", "--data.labels_file=l.csv", "l.csv: there is no image cat/nope.png in the folder"),
    ("cat/a.png,x;y", "--data.labels_file=l.csv", "l.csv: line 2: 'x;y' names several classes, expected one"),
    ("cat/a.png,x", "--data.labels_file=l.csv --data.class_list=c.txt", "has label x, which is not in c.txt"),
    ("", "--data.labels_file=l.csv --data.split=test", "no split 'test' in pets"),
])  # fmt: skip
def test_tables_of_labels_are_of_the_folder(
    rows: str, words: str, part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "l.csv").write_text(f"file,label\n{rows}\n")
    (folder / "c.txt").write_text("y\nz\n")
    for more in ([], ["--dry-run"]):
        assert part in refused(capsys, "run", "chain.yaml", *words.split(), *more)


def test_images_of_a_folder_are_of_one_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "chain.yaml", "--dry-run"])
    Image.new("RGB", (9, 7)).save(folder / "pets/dog/e.png")
    part = "stage choose: pets/dog/e.png is 9×7, but pets/cat/a.png is 8×8; give --data.image_size"
    for more in ([], ["--dry-run"], ["--dry-run", "--data.on_error=skip"]):
        capsys.readouterr()
        assert part in refused(capsys, "run", "chain.yaml", *more)
    main(["run", "chain.yaml", "--dry-run", "--data.image_size=8"])
    (folder / "pets/dog/e.png").write_bytes(b"no image")
    main(["run", "chain.yaml", "--dry-run", "--data.on_error=skip"])
    capsys.readouterr()
    assert "pets/dog/e.png: not an image file" in refused(capsys, "run", "chain.yaml", "--dry-run")
    (folder / "pets/dog/e.png").write_bytes(b"")
    assert "pets/dog/e.png: empty file" in refused(capsys, "run", "chain.yaml", "--dry-run", "--data.image_size=8")


@pytest.mark.parametrize("key", ["data.labels", "model.keep_from"])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_label_index_is_of_the_folder(
    key: str, hashes: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source("folder", "train", dir="pets")
    files, content = ("cat/a.png", "dog/d.png"), tuple(source.content_hashes([0, 3])) if hashes else ()
    index = LabelIndex(dataset_id(source), {}, (0, 3), (0, 1), source.classes, files, hashes=content)
    index.write("labels.json")
    fit = {"name": "choose", "command": "fit", "config": "folder_fixmatch.yaml"}
    if key == "data.labels":
        (folder / "chain.yaml").write_text(json.dumps({"stages": [fit], "set": {"data.dir": "pets"}}))
    words = ["run", "chain.yaml", f"--choose.{key}=labels.json", "--dry-run"]
    main(words)
    Image.new("RGB", (8, 8)).save(folder / "pets/cat/0.png")
    capsys.readouterr()
    if hashes:
        main(words)  # the folder has grown
        (folder / "pets/cat/a.png").rename(folder / "pets/dog/a.png")
        capsys.readouterr()
        assert '"cat/a.png" is not in the data; put it back' in refused(capsys, *words)
    else:
        assert "chosen from folder/train (4 images), but the data is folder/train (5 images)" in refused(capsys, *words)


@pytest.mark.parametrize(("method", "name"), [
    ("sela", "clusters"), ("deepcluster", "clusters"), ("deepcluster_v1", "clusters"), ("swav", "prototypes"),
    ("uslt", "clusters"), ("probcover", "clusters"),
])  # fmt: skip
def test_more_clusters_than_images_are_refused(
    method: str, name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"probcover": ["--one.model.features=features.npy"], "uslt": ["--one.data.neighbors=two.npy"]}
    stage = {"name": "one", "command": "select" if method == "probcover" else "fit", "config": f"digits_{method}.yaml"}
    (here / "chain.yaml").write_text(json.dumps({"stages": [stage]}))
    words = ["run", "chain.yaml", "--dry-run", *more.get(method, [])]
    for given in ([f"{name}=1438"], ["clusters=[10, 1438]", "heads=2"])[: 2 if method == "sela" else 1]:
        said = refused(capsys, *words, *(f"--one.model.{each}" for each in given))
        assert f"stage one: model.{name}: 1438 for 1437 images; use at most 1437" in said
    main([*words, f"--one.model.{name}=1437"])


def test_a_cache_that_cannot_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USL_CACHE", "text.txt/x")
    said = refused(capsys, "run", DIGITS, "--dry-run")
    assert said.startswith("usl: stage select: USL_CACHE: ")
    assert "text.txt: is there already, and no folder; give another folder" in said


def test_the_cache_that_nobody_named_is_looked_at_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(Path("text.txt").absolute()))
    said = refused(capsys, "run", DIGITS, "--dry-run")
    assert said.startswith("usl: stage select: model.cache: ")
    assert "text.txt: is there already, and no folder; give another folder" in said
    main(["run", DIGITS, "--dry-run", "--select.model.cache", "kept"])


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


@pytest.mark.parametrize("words", [
    "--pretrain.trainer.max_time=00:00:00:01", "--pretrain.trainer.max_time={minutes: 0.5}",
    "--pretrain.model.backbone=resnet18 --data.image_size=32 --finetune.model.backbone=resnet18",
    "--select.model.init_from=./small.ckpt",
    "--finetune.model.init_from=link.ckpt", "--finetune.data.labels=digits.json", "--finetune.data.labels=three.json",
    "--finetune.data.labels=unanswered.json --finetune.data.unanswered=leave_out",
    "--select.model.features=features.npy --select.model.init_from=null", "--slurm --slurm-header=header.sh",
    "--finetune.model.init_from=~/small.ckpt", "--pretrain.compile=true",
])  # fmt: skip
def test_odd_words_that_are_right(
    words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "link.ckpt").symlink_to("small.ckpt")
    (here / "header.sh").write_text("#SBATCH --time=1\n")
    main(["run", DIGITS, "--dry-run", *(f"--{each}" for each in words.removeprefix("--").split(" --"))])
    assert "distill" in capsys.readouterr().out


def test_a_network_in_a_file_is_refused_as_it_is_when_it_is_loaded(here: Path) -> None:
    method = "usl_lightning.pretrain.simclr.SimCLR"
    for backbone in ("small", "small_w16", "small_s2"):
        for channels in (1, 3):
            spec = ImageSpec(channels, 8, 8, (0.5,) * channels, (0.5,) * channels)
            own = {"model.class_path": method, "model.backbone": backbone, "data.channels": channels}
            with pytest.raises(UslError) if (backbone, channels) != ("small", 1) else nullcontext():
                init_encoder(Encoder(backbone, spec), here / "small.ckpt")
            with pytest.raises(UslError) if (backbone, channels) != ("small", 1) else nullcontext():
                check_network_in("model.init_from", str(here / "small.ckpt"), own)
    check_network_in("model.init_from", str(here / "plain.ckpt"), {"model.class_path": "mine.Method"})
    assert HEADS[0] == VOTES


def test_what_a_checkpoint_says_is_told_without_running_it(here: Path) -> None:
    told = peek(str(here / "small.ckpt"))
    assert told[ENTRY] == torch.load(here / "small.ckpt", weights_only=True)[ENTRY]
    torch.save({"a": os.path.join, "b": Path("x"), "c": [1]}, here / "other.ckpt")
    assert peek(str(here / "other.ckpt"))["c"] == [1]
    for name in ("text.txt", "torn.ckpt"):
        assert peek(str(here / name)) == {}


def test_a_figure_that_nobody_tells(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "table", "digits_table.yaml", "--metric=nope", "--dry-run")
    assert "metric: no stage tells a figure 'nope'" in said
    assert "usl table: --slurm-header" in refused(capsys, "table", "digits_table.yaml", "--slurm-header=text.txt")
    for name in (
        "knn_accuracy",
        "test_accuracy_median",
        "select.classes_covered",
        "select.balance",
        "calibration_error",
    ):
        main(["table", "digits_table.yaml", f"--metric={name}", "--rows", "[Random]", "--dry-run"])
    assert capsys.readouterr().out.count("cells") == 5


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
