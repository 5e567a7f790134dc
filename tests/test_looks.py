"""What is done with a trained classifier: `usl test`, `usl predict`, `usl export`."""

import csv
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import FIXMATCH
from sklearn.metrics import confusion_matrix

from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.labels import LabelIndex
from usl_lightning.models.heads import load_classifier
from usl_lightning.stage import export as exporting
from usl_lightning.stage import predict as predicting
from usl_lightning.stage.export import Deployed, export_classifier

MODEL = FIXMATCH[1:7]  # the configuration, and what of the model is changed
CLASSES = tuple(str(i) for i in range(10))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FixMatch, a few steps from ten labels."""
    folder = tmp_path_factory.mktemp("looks")
    source = open_source("digits", "train")
    chosen = [int(torch.nonzero(source.labels == label)[0]) for label in range(10)]
    index = LabelIndex(dataset_id(source), {}, tuple(chosen), tuple(range(10)), source.classes)
    index.write(folder / "labels.json")
    words = [*FIXMATCH, "--data.labels", str(folder / "labels.json"), "--run_dir", str(folder / "run")]
    main([*words, "--trainer.max_steps", "12", "--model.ema_decay", "0.5"])
    return folder / "run"


def look(command: str, run_dir: Path, *more: str) -> None:
    main([command, *MODEL, "--model.ema_decay", "0.5", "--run_dir", str(run_dir), "--ckpt_path", "last", *more])


def probabilities(run_dir: Path, images: torch.Tensor) -> torch.Tensor:
    """What the moving average says, [n, 10], by another way than the commands'."""
    classifier = load_classifier(run_dir / "checkpoints/last.ckpt")
    with torch.no_grad():
        return classifier(images).softmax(1)


def refused(capsys: pytest.CaptureFixture[str], command: str, run_dir: Path, *more: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        look(command, run_dir, *more)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# usl test ------------------------------------------------------------------------------------------------


def test_test_needs_no_labels_and_tells_everything(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after_training = json.loads((run_dir / "evaluation.json").read_text())
    capsys.readouterr()
    look("test", run_dir)
    told, table = json.loads((run_dir / "evaluation.json").read_text()), capsys.readouterr().out
    assert told == after_training, "that of the last step is written when training ends"
    test = open_source("digits", "test")
    guesses = probabilities(run_dir, test.images).argmax(1)
    assert told["ema"]["confusion"] == confusion_matrix(test.labels, guesses).tolist()
    assert told["ema"]["accuracy"] == pytest.approx(float((guesses == test.labels).double().mean()))
    assert told["ema"]["accuracy"] > 0.15  # chance is 0.1, with a deviation of 0.016
    assert told["online"]["confusion"] != told["ema"]["confusion"]
    assert (told["method"], told["dataset"], tuple(told["classes"])) == ("FixMatch", "digits", CLASSES)
    assert f"{told['ema']['accuracy']:.4f}  {told['online']['accuracy']:.4f}" in table
    assert "taken for" in table


def test_nothing_to_measure_on_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = open_source("digits", "train")
    pixels, unknown = source.images[:20, 0].numpy(), np.full(20, -1)
    parts = {"train_images": pixels, "train_labels": source.labels[:20].numpy(), "classes": np.array(CLASSES)}
    np.savez(tmp_path / "alone.npz", **parts)
    np.savez(tmp_path / "unknown.npz", **parts, test_images=pixels, test_labels=unknown)
    before = (run_dir / "evaluation.json").read_text()
    for name, expected in (
        ("alone", "has no test split to measure on"),
        ("unknown", "no test image of arrays has a label"),
    ):
        for command in ("test", "validate"):
            words = ["--data.dataset", "arrays", "--data.dir", str(tmp_path / f"{name}.npz")]
            line = refused(capsys, command, run_dir, *words)
            assert expected in line
    assert (run_dir / "evaluation.json").read_text() == before


def test_the_result_tells_the_accuracies_and_the_guesses(run_dir: Path) -> None:
    result, told = (json.loads((run_dir / f"{name}.json").read_text()) for name in ("result", "evaluation"))
    assert result["test_accuracy"] == pytest.approx(told["ema"]["accuracy"])
    assert result["test_calibration_error_online"] == pytest.approx(told["online"]["calibration_error"])
    assert 0 < result["pseudo_label_rate"] <= 1
    assert 0 < result["pseudo_label_accuracy"] <= 1


def test_other_classes_are_refused(run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = open_source("digits", "train")
    pixels = source.images[:, 0].numpy()
    names = np.array([f"digit {i}" for i in range(10)])
    arrays = {f"{split}_images": pixels for split in ("train", "test")}
    arrays |= {f"{split}_labels": source.labels.numpy() for split in ("train", "test")}
    np.savez(tmp_path / "other.npz", **arrays, classes=names)
    words = ["--data.dataset", "arrays", "--data.dir", str(tmp_path / "other.npz")]
    for command in ("test", "predict"):
        line = refused(capsys, command, run_dir, *words)
        assert "tells 10 classes (0, 1, 2, …) apart, the data has 10 classes (digit 0, digit 1, digit 2, …)" in line


@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_a_precision_the_device_lacks(run_dir: Path, capsys: pytest.CaptureFixture[str], precision: str) -> None:
    words = ["--trainer.precision", precision, "--trainer.accelerator", "cpu"]
    line = refused(capsys, "test", run_dir, *words)
    assert line == f"usl: trainer.precision: {precision} is not for a CPU; use bf16-mixed or 32-true"


# usl predict ---------------------------------------------------------------------------------------------


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label", "probability"]
    return rows


@pytest.mark.parametrize(("words", "split", "name"), [([], "train", ""), (["--split", "test"], "test", "_test")])
def test_predictions_of_a_split(run_dir: Path, words: list[str], split: str, name: str) -> None:
    look("predict", run_dir, *words, "--data.eval_batch_size", "100")
    found = rows(run_dir / f"predictions{name}.csv")
    expected = probabilities(run_dir, open_source("digits", split).images).max(1)
    assert [int(image) for image, _, _ in found] == list(range(len(expected.values)))
    assert [label for _, label, _ in found] == [CLASSES[i] for i in expected.indices]
    assert [float(p) for _, _, p in found] == pytest.approx(expected.values.tolist(), abs=1e-5)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Digits as files: nested, larger, not square, in colour, with names that need quotes."""
    images = open_source("digits", "test").images
    folder = tmp_path / "pictures"
    (folder / "a/b").mkdir(parents=True)
    for i, name in enumerate(["0.png", "a/1, one.png", "a/b/2.png"]):
        wide = Image.new("RGB", (80, 64))
        wide.paste(Image.fromarray(images[i, 0].numpy()).resize((64, 64)), (8, 0))
        wide.save(folder / name)
    return folder


def test_predictions_of_a_folder(run_dir: Path, pictures: Path) -> None:
    look("predict", run_dir, "--folder", str(pictures), "--data.workers", "0")
    found = rows(run_dir / "predictions_pictures.csv")
    assert [image for image, _, _ in found] == ["0.png", "a/1, one.png", "a/b/2.png"]
    crops = [
        Image.open(pictures / name).convert("L").crop((8, 0, 72, 64)).resize((8, 8), Image.Resampling.BILINEAR)
        for name, _, _ in found
    ]
    expected = probabilities(run_dir, torch.from_numpy(np.stack(crops))[:, None]).max(1)
    assert [float(p) for _, _, p in found] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert [label for _, label, _ in found] == [CLASSES[i] for i in expected.indices]


def test_unreadable_files_of_a_folder(run_dir: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out, counted and listed; to stop at the first has to be asked for."""
    (pictures / "a/bad, worse.png").write_bytes(b"not an image")
    (pictures / "gone.png").symlink_to("nowhere")
    capsys.readouterr()
    look("predict", run_dir, "--folder", str(pictures), "--data.workers", "0")
    listed = run_dir / "predictions_pictures_left_out.csv"
    lines = [line for line in capsys.readouterr().out.splitlines() if "predictions" in line]
    assert lines == [
        f"3 predictions: {run_dir}/predictions_pictures.csv; 2 files that cannot be read are left out, listed with the"
        f" reason in {listed}"
    ]
    assert [image for image, _, _ in rows(run_dir / "predictions_pictures.csv")] == [
        "0.png",
        "a/1, one.png",
        "a/b/2.png",
    ]
    with open(listed, newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "problem"],
            ["a/bad, worse.png", "not an image file, or damaged at its beginning"],
            ["gone.png", "a link to nothing, expected an image file"],
        ]
    (pictures / "gone.png").unlink()
    for workers in ("0", "1"):
        words = ["--data.workers", workers, "--data.on_error", "fail"]
        line = refused(capsys, "predict", run_dir, "--folder", str(pictures), *words)
        assert line == f"usl: {pictures}/a/bad, worse.png: not an image file, or damaged at its beginning"
    (pictures / "a/bad, worse.png").unlink()
    look("predict", run_dir, "--folder", str(pictures), "--data.workers", "0")
    assert not listed.exists(), "nothing is left out any more"
    out = pictures.parent / "mine.csv"
    (pictures / "none.png").touch()
    look("predict", run_dir, "--folder", str(pictures), "--data.on_error", "skip", "--out", str(out))
    assert [image for image, _, _ in rows(out)] == ["0.png", "a/1, one.png", "a/b/2.png"]
    assert (out.parent / "mine_left_out.csv").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_files_that_vanish_amid_a_prediction_are_left_out(
    run_dir: Path, pictures: Path, workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was computed of the others is not lost; a name that a spreadsheet would compute is none in the list."""
    for number in range(6):
        shutil.copy(pictures / "0.png", pictures / f"c{number}.png")
    shutil.copy(pictures / "0.png", pictures / "=1.png")
    opened = predicting.open_images

    def vanish(*args: Any, **options: Any) -> Any:
        source = opened(*args, **options)
        (pictures / "=1.png").unlink()
        (pictures / "c2.png").write_bytes(b"x")
        return source

    monkeypatch.setattr(predicting, "open_images", vanish)
    out, target = pictures.parent / "v.csv", pictures.parent / "sorted"
    more = ["--data.workers", workers, "--data.eval_batch_size", "3", "--out", str(out), "--sort-into", str(target)]
    look("predict", run_dir, "--folder", str(pictures), "--all-probabilities", *more)
    names = ["0.png", "a/1, one.png", "a/b/2.png", *(f"c{number}.png" for number in (0, 1, 3, 4, 5))]
    with open(out, newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["image"] for row in found] == names
    assert len({row["probability"] for row in found if row["image"] in ("0.png", "c0.png", "c5.png")}) == 1
    with open(pictures.parent / "v_left_out.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["'=1.png", "cannot be read (No such file or directory)"],
            ["c2.png", f"changed since the folder was listed ({(pictures / '0.png').stat().st_size} bytes then, 1 now);"
             " start again"],
        ]  # fmt: skip
    said = capsys.readouterr().out
    assert f"8 predictions: {out}; 2 files that cannot be read are left out" in said
    assert f"8 copies, by class: {target}" in said
    assert len(list(target.rglob("*.png"))) == 8


def test_files_that_are_all_gone_are_an_error(
    run_dir: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = predicting.open_images

    def vanish(*args: Any, **options: Any) -> Any:
        source = opened(*args, **options)
        shutil.rmtree(pictures)
        return source

    monkeypatch.setattr(predicting, "open_images", vanish)
    line = refused(capsys, "predict", run_dir, "--folder", str(pictures), "--data.workers", "0")
    assert line == "usl predict: none of the 3 images can be read any more; are they still there?"


def test_nothing_to_predict_is_an_error(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.png").write_bytes(b"x")
    line = refused(capsys, "predict", run_dir, "--folder", str(tmp_path / "bad"))
    assert line.startswith(f"usl: {tmp_path}/bad: none of its 1 images can be read; first: 1.png: not an image file")


def test_transparent_pixels_are_predicted_on_the_background(run_dir: Path, pictures: Path) -> None:
    """As they were learned: a hidden colour decides nothing."""
    plain = pictures.parent / "plain"
    plain.mkdir()
    for file in pictures.rglob("*.png"):
        image = Image.open(file).convert("RGBA")
        image.putalpha(image.convert("L").point(lambda v: 255 if v > 99 else 0))
        image.save(file)
        laid = Image.alpha_composite(Image.new("RGBA", image.size, "#204060"), image).convert("RGB")
        laid.save(plain / file.name)
    for folder, words in ((pictures, ["--data.background", "#204060"]), (plain, [])):
        look("predict", run_dir, "--folder", str(folder), "--data.workers", "0", *words)
    found, expected = (
        sorted((Path(image).name, *rest) for image, *rest in rows(run_dir / f"predictions_{name}.csv"))
        for name in ("pictures", "plain")
    )
    assert found == expected


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--folder", "nowhere"], "--folder: no such folder: nowhere"),
        (["--folder", "."], "no image in it; expected files that end in .jpg"),
        (["--folder", ".", "--split", "test"], "--folder and --split are both given"),
        (["--split", "tset"], "tset"),
        (["--folder"], "--folder: its value is missing"),
        (
            ["--data.image_size", "16"],
            "the images are 1×16×16 (channels × height × width), the classifier was trained on",
        ),
    ],
)
def test_what_predict_refuses(
    run_dir: Path,
    words: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in refused(capsys, "predict", run_dir, *words)


# usl export ----------------------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys
sys.modules["usl_lightning"] = None  # an import of it fails
import numpy as np
path, images = sys.argv[1], np.load(sys.argv[2])
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    run = lambda batch: session.run(["probabilities"], {"images": batch})[0]
    about = session.get_modelmeta().custom_metadata_map
    classes = json.loads(about["classes"])
else:
    import torch
    files = {"about.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    run = lambda batch: program(torch.from_numpy(batch)).detach().numpy()
    classes = json.loads(files["about.json"])["classes"]
np.save(sys.argv[3], np.concatenate([run(images[:1]), run(images[1:])]))
print(json.dumps(classes))
"""


@pytest.mark.parametrize(
    ("suffix", "pixels"), [("onnx", "uint8"), ("pt2", "uint8"), ("onnx", "float32"), ("pt2", "float32")]
)
def test_an_exported_model_runs_without_this_package(run_dir: Path, tmp_path: Path, suffix: str, pixels: str) -> None:
    out, images = tmp_path / f"model.{suffix}", open_source("digits", "test").images[:30]
    config = ["--config", "digits_fixmatch.yaml", "--run_dir", str(run_dir)]
    main(["export", *config, "--ckpt_path", "last", "--out", str(out), "--pixels", pixels])
    given = images.numpy() if pixels == "uint8" else (images.float() / 255).numpy()
    np.save(tmp_path / "images.npy", given)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    words = [str(path) for path in ("elsewhere.py", out, "images.npy", "probabilities.npy")]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout)) == CLASSES
    expected = probabilities(run_dir, images)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected.numpy(), atol=1e-5)
    about = json.loads((tmp_path / f"model.{suffix}.json").read_text())
    assert about["input"]["shape"] == ["batch", 1, 8, 8]
    assert about["input"]["dtype"] == pixels
    assert sorted(path.name for path in tmp_path.glob("model*")) == [f"model.{suffix}", f"model.{suffix}.json"]


def test_a_deployed_model_takes_both_types(run_dir: Path) -> None:
    model = Deployed(load_classifier(run_dir / "checkpoints/last.ckpt"))
    images = open_source("digits", "test").images[:5]
    torch.testing.assert_close(model(images), model(images.float() / 255))
    torch.testing.assert_close(model(images).sum(1), torch.ones(5))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--out", "a.pt"], "--out a.pt: expected a name that ends in .onnx or .pt2"),
        (["--out", "a.pt2", "--pixels", "int8"], "--pixels int8: expected uint8 or float32"),
        ([], "--out FILE is missing"),
        (["--out"], "--out: its value is missing"),
        (["--out", "a.pt2", "--model.threshold", "1"], "--model.threshold is not for it"),
        (["--out", "a.pt2", "--ckpt_path", "none.ckpt"], "no such checkpoint: none.ckpt"),
    ],
)
def test_what_export_refuses(
    run_dir: Path,
    words: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", "--config", "digits_fixmatch.yaml", "--run_dir", str(run_dir), "--ckpt_path", "last", *words])
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_export_that_was_killed_is_repeated(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its two files, too: what is there is known as its own."""
    checkpoint, out = run_dir / "checkpoints/last.ckpt", tmp_path / "m.pt2"
    written = exporting.write_json

    def interrupt(path: Path, value: Any, *, whole: bool) -> None:
        if whole:
            written(path, value)
        raise KeyboardInterrupt

    for whole in (False, True):
        monkeypatch.setattr(exporting, "write_json", partial(interrupt, whole=whole))
        with pytest.raises(KeyboardInterrupt):
            export_classifier(checkpoint, out)
        assert [path.name for path in tmp_path.iterdir()] == ["m.pt2.json"] * whole
    monkeypatch.setattr(exporting, "write_json", written)
    export_classifier(checkpoint, out)
    assert out.exists()


def test_export_without_onnx_says_what_to_install(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else real(name, *a))
    with pytest.raises(UslError, match=r"ONNX needs onnxscript; pip install onnxscript, or give a name in \.pt2"):
        export_classifier(run_dir / "checkpoints/last.ckpt", tmp_path / "a.onnx")


# Fewer labels than classes -------------------------------------------------------------------------------


def test_classes_without_a_label_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source("digits", "train")
    chosen = [int(torch.nonzero(source.labels == label)[0]) for label in range(8)]
    path = tmp_path / "eight.json"
    LabelIndex(dataset_id(source), {}, tuple(chosen), tuple(range(8)), source.classes).write(path)
    words = [*FIXMATCH, "--data.labels", str(path), "--run_dir", str(tmp_path / "run"), "--trainer.max_steps", "1"]
    with caplog.at_level(logging.WARNING, logger="usl_lightning"):
        main(words)
    assert f"{path}: no label of 2 of the 10 classes (8, 9); images of them will be taken for others" in caplog.text
