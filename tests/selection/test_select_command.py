"""Selectors as commands: every class on real features, images to keep, and what is told of a choice."""

import importlib
import json
import logging
import pkgutil
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import usl
from sklearn.datasets import load_digits

import usl_lightning.selection
from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.modules import ImageData
from usl_lightning.engine.trainer import Trainer
from usl_lightning.evaluation.label_quality import label_quality
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry
from usl_lightning.selection.coreset import Coreset
from usl_lightning.selection.selector import Selector
from usl_lightning.selection.stratified import Stratified
from usl_lightning.stage.outcome import chosen_index, chosen_quality
from usl_lightning.stage.select import Selection, choose
from usl_lightning.stage.words import StageCommand

N = 1437


def selectors() -> dict[str, type[Selector]]:
    """Module -> its selector, of all that need features alone (USL-T's needs its heads too)."""
    found = {}
    for info in pkgutil.iter_modules(usl_lightning.selection.__path__):
        module = importlib.import_module(f"usl_lightning.selection.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Selector) and value.__module__ == module.__name__
            if (
                own
                and info.name not in ("selector", "next_selector", "view_selector")
                and not info.name.startswith("uslt")
            ):
                found[info.name] = value
    return found


SELECTORS = selectors()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with the pixels of the training digits as features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    pixels = open_source("digits", "train").read(torch.arange(N)).reshape(N, -1)
    np.save("pixels.npy", pixels.numpy().astype(np.float32))


def digits() -> ImageData:
    return ImageData("digits", seed=2)


def made(name: str, budget: int, data: ImageData, **more: Any) -> Selector:
    more["features"] = "pixels.npy"
    if name == "stratified":
        more["allow_oracle"] = True
    return SELECTORS[name](image=data.spec, budget=budget, **more)


def select(model: Selector, data: ImageData) -> Selection:
    return choose(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), model, data)


def test_they_are_all_here() -> None:
    assert set(SELECTORS) >= {
        "activeft", "as3l", "coreset", "density", "kmeans_nearest", "kmedoids", "maxherding", "probcover", "random",
        "rdss", "stratified", "typiclust", "usl",
    }  # fmt: skip


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist", "cifar10"])
@pytest.mark.parametrize("name", SELECTORS)
def test_each_has_a_configuration(name: str, dataset: str) -> None:
    config = StageCommand.parse("select", [f"--config={dataset}_{name}.yaml"]).tree()
    assert config["model"]["class_path"] == f"{SELECTORS[name].__module__}.{SELECTORS[name].__name__}"
    assert config["data"]["init_args"]["dataset"] == dataset


@pytest.mark.parametrize("name", ["random", "stratified"])
def test_features_are_for_the_report_alone(name: str) -> None:
    data, allowed = digits(), {"allow_oracle": True} if name == "stratified" else {}
    Path("keep.json").write_text("[1436, 0]")
    for kept in (None, "keep.json"):
        without = select(SELECTORS[name](image=data.spec, budget=12, keep_from=kept, **allowed), data)
        given = select(made(name, 12, data, keep_from=kept), data)
        assert torch.equal(given.indices, without.indices)
        assert (without.evidence.shape, given.evidence.shape) == ((N, 0), (N, 64))
    index = chosen_index(data.train_source, given.indices, {}, None)
    assert "propagated_accuracy" in chosen_quality(index, data.train_source, given.evidence)
    assert "propagated_accuracy" not in chosen_quality(index, data.train_source, without.evidence)
    write_checkpoint("some.ckpt", online="encoder.")
    model = SELECTORS[name](image=data.spec, budget=12, init_from="some.ckpt", keep_from="keep.json", **allowed)
    selection = select(model, data)
    assert torch.equal(selection.indices, without.indices)
    assert selection.evidence.shape[1] > 0


def test_what_was_added_while_labelling_is_kept_beyond_the_budget() -> None:
    data = digits()
    kept = chosen_index(data.train_source, torch.tensor([9, 7, 5]), {}, None)
    replace(kept.with_added([3, 2]), labels=(*kept.labels, 1, 4), bulk=(3,)).write("kept.json")
    model = made("coreset", 6, data, keep_from="kept.json")
    selection = select(model, data)
    assert (selection.indices[:5].tolist(), len(selection.indices.unique())) == ([9, 7, 5, 3, 2], 8)
    index = chosen_index(data.train_source, selection.indices, {}, selection.kept)
    assert (index.added, index.bulk, index.labels[3:5], index.chosen) == ((3, 2), (3,), (1, 4), 6)
    with pytest.raises(UslError, match="holds 3 images, the budget is 2; the budget counts them too: give"):
        select(made("coreset", 2, data, keep_from="kept.json"), data)


def write_checkpoint(path: str, **prefixes: str) -> dict[str, Encoder]:
    """A checkpoint with another encoder under each prefix."""
    encoders = {}
    state: dict[str, torch.Tensor] = {}
    for seed, (name, prefix) in enumerate(prefixes.items()):
        torch.manual_seed(seed)
        encoders[name] = Encoder("small_w16", digits().spec).eval()
        state |= {f"{prefix}{key}": value for key, value in encoders[name].state_dict().items()}
    torch.save({ENTRY: encoder_entry(encoders["online"], **prefixes), "state_dict": state}, path)
    return encoders


def test_weights_of_the_moving_average() -> None:
    data = digits()
    encoders = write_checkpoint("both.ckpt", online="model.encoder.", ema="ema.module.encoder.")
    images = data.train_source.read(torch.arange(N))
    for weights, encoder in encoders.items():
        evidence = select(Coreset(data.spec, 3, init_from="both.ckpt", weights=weights), data).evidence  # type: ignore[arg-type]
        with torch.no_grad():
            torch.testing.assert_close(evidence, encoder(images))
    write_checkpoint("online.ckpt", online="encoder.")
    with pytest.raises(UslError, match=r"online\.ckpt: holds no ema weights; it has online"):
        select(Coreset(data.spec, 3, init_from="online.ckpt", weights="ema"), data)


# the command ---------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[LabelIndex, dict[str, Any]]:
    main(["select", "--run_dir", "run", *words])
    return LabelIndex.read("run/labels.json"), json.loads(Path("run/result.json").read_text())


CORESET = ("--config", "digits_coreset.yaml", "--model.features", "pixels.npy")


def test_quality_is_told_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    index, result = run(*CORESET)
    labels, pixels = open_source("digits", "train").labels, torch.from_numpy(np.load("pixels.npy"))
    expected = label_quality(labels, torch.tensor(index.indices), pixels, num_classes=10)
    assert result == {"budget": 10, **expected}
    assert index.labels == tuple(labels[list(index.indices)].tolist())
    assert (index.method["name"], index.method["seed"]) == ("coreset", 0)
    out = capsys.readouterr().out
    assert f"classes covered      {expected['classes_covered']} of 10\n" in out
    assert f"propagated accuracy  {expected['propagated_accuracy']:.4f}\n" in out


def test_what_was_decided_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    index, _ = run(
        "--config",
        "digits_usl.yaml",
        "--model.features",
        "pixels.npy",
        "--model.budget",
        "100",
        "--model.clusters",
        "105",
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "density: k = 143 instead of 400, at most a tenth of the 1437 points"
    assert lines[1] == "density: 143 nearest neighbours of 1437 points, recall 1.000"
    assert lines[2].startswith("k-means: converged after ")
    assert len(lines) == 3
    params = index.method["params"]
    assert (params["k"], params["clusters"], params["preset"]) == (143, 105, "cifar")


def test_warnings_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    run(*CORESET)
    logging.getLogger("usl_lightning.features.images").warning("no %s", "room")
    assert capsys.readouterr().err == "warning: no room\n"


def test_the_picture_of_many_shows_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    run(*CORESET, "--model.budget", "205")
    assert "run/chosen.png: the first 200 of the 205 chosen images\n" in capsys.readouterr().out
    with Image.open("run/chosen.png") as picture:
        assert picture.height == 20 * (64 + 18 + 6) + 6


def test_a_row_of_zeros_leaves_out_what_needs_directions() -> None:
    data = digits()
    features = torch.from_numpy(np.load("pixels.npy"))
    features[3] = 0
    index = chosen_index(data.train_source, torch.arange(20), {}, None)
    quality = chosen_quality(index, data.train_source, features)
    assert set(quality) == {"classes_covered", "class_counts", "balance"}


def write_unlabelled() -> None:
    images = np.rint(load_digits().images[:50] * (255 / 16)).astype(np.uint8)
    Path("data").mkdir()
    np.savez("data/train.npz", images=images)
    np.save("fifty.npy", images.reshape(50, -1).astype(np.float32))


UNLABELLED = (
    "--config", "digits_coreset.yaml", "--model.features", "fifty.npy",
    "--data.dataset", "arrays", "--data.dir", "data",
)  # fmt: skip


def test_where_there_are_no_labels_it_says_how_to_give_them(capfd: pytest.CaptureFixture[str]) -> None:
    write_unlabelled()
    index, result = run(*UNLABELLED)
    assert result == {"budget": 10}
    assert index.unlabelled == 10
    last = capfd.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"10 images to label: usl label \S+/labels\.json", last)


def test_labels_that_people_gave_are_kept() -> None:
    write_unlabelled()
    source = open_source("arrays", "train", dir="data")
    LabelIndex(dataset_id(source), {}, (7, 30), (1, None), ("cat", "dog")).write("mine.json")
    index, _ = run(*UNLABELLED, "--keep", "mine.json", "--model.budget", "5")
    assert index.indices[:2] == (7, 30)
    assert index.labels == (1, None, None, None, None)
    assert index.classes == ("cat", "dog")


def test_a_kept_label_stands_whatever_the_data_set_says() -> None:
    source = open_source("digits", "train")
    wrong = (int(source.labels[7]) + 1) % 10
    LabelIndex(dataset_id(source), {}, (7,), (wrong,), source.classes).write("mine.json")
    index, result = run(*CORESET, "--keep", "mine.json", "--model.budget", "1")
    assert (index.indices, index.labels) == ((7,), (wrong,))
    assert result["class_counts"][wrong] == 1


def test_a_class_that_was_added_when_labelling_is_kept() -> None:
    source = open_source("digits", "train")
    LabelIndex(dataset_id(source), {}, (7,), (10,), (*source.classes, "no digit")).write("mine.json")
    index, result = run(*CORESET, "--keep", "mine.json", "--model.budget", "2")
    assert index.labels[0] == 10
    assert index.classes == (*source.classes, "no digit")
    assert result["class_counts"][10] == 1


def test_a_choice_grows() -> None:
    """A greedy method with its own first choice kept chooses as with the larger budget at once."""
    main(["select", "--run_dir", "ten", *CORESET])
    grown, _ = run(*CORESET, "--keep", "ten/labels.json", "--model.budget", "15")
    main(["select", "--run_dir", "fifteen", *CORESET, "--model.budget", "15"])
    assert grown.indices == LabelIndex.read("fifteen/labels.json").indices
    assert None not in grown.labels


def test_the_oracle_has_to_be_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--config", "digits_stratified.yaml")
    assert "give --allow-oracle to compare" in capsys.readouterr().err
    _, result = run("--config", "digits_stratified.yaml", "--allow-oracle", "--model.budget", "30")
    assert result["class_counts"] == [3] * 10
    write_unlabelled()
    data = ImageData("arrays", dir="data")
    with pytest.raises(UslError, match="no image of arrays has a label"):
        select(Stratified(image=data.spec, budget=3, allow_oracle=True), data)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model.features", "fifty.npy"], "50 rows for the 1437 images of digits/train"),
        (["--model.features", "none.npy"], "model.features: no such file: none.npy"),
        (["--model.init_from", "x.ckpt", "--model.features", "pixels.npy"], "model.init_from: no such file"),
        (["--model.backbone", "resnet18", "--model.features", "pixels.npy"], "model.backbone and model.features are"),
        (["--model.features", "pixels.npy", "--keep", "far.json"], "far.json: entry 1: index 1437 is out of range"),
        (["--model.features", "pixels.npy", "--keep", "other.json"], "other.json: chosen from arrays/train (50 images"),
        (["--model.features", "pixels.npy", "--keep", "many.json"], "many.json holds 11 images, the budget is 10"),
        (["--model.features", "pixels.npy", "--keep", "none.json"], "none.json: label index cannot be read"),
        (["--model.class_path", "usl_lightning.selection.corset.Coreset"], "(did you mean 'coreset'?)"),
        (["--model.class_path", "usl_lightning.selection.coreset.Corest"], "(did you mean 'Coreset'?)"),
        (["--model.class_path", "corset"], "did you mean the class in usl_lightning.selection.coreset?"),
        (["--model.weights", "best"], "--model.weights: expected one of 'online', 'ema'"),
        (["--model.keep_form", "x"], "unknown key 'keep_form' (did you mean 'keep_from'?)"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_unlabelled()
    Path("far.json").write_text("[3, 1437]")
    Path("many.json").write_text(json.dumps(list(range(11))))
    source = open_source("arrays", "train", dir="data")
    LabelIndex(dataset_id(source), {}, (1,), (None,)).write("other.json")
    with pytest.raises(SystemExit) as stop:
        main(["select", "--run_dir", "run", "--config", "digits_coreset.yaml", *words])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_processes_choose_as_one(tmp_path: Path) -> None:
    write_checkpoint("some.ckpt", online="encoder.")
    words = ["select", "--config", "digits_coreset.yaml", "--model.init_from", "some.ckpt"]
    two = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
    main([*words, "--run_dir", "one", "--model.cache", "cache1"])
    usl(tmp_path, *words, "--run_dir", "two", "--model.cache", "cache2", *two).done()
    usl(tmp_path, *words, "--run_dir", "again", "--model.cache", "cache2", *two).done()
    kept = [np.load(next((tmp_path / name).glob("*.npz")))["features"] for name in ("cache1", "cache2")]
    np.testing.assert_allclose(kept[0], kept[1], rtol=1e-4, atol=1e-5)
    one, *others = (LabelIndex.read(tmp_path / name / "labels.json") for name in ("one", "two", "again"))
    for other in others:
        assert other.indices == one.indices
        assert (other.labels, other.method) == (one.labels, one.method)
