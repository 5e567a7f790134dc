"""`usl label|test|predict|export RUN`: the folder of a run is enough; and copies of images by class."""

import csv
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from usl_lightning import Classifier
from usl_lightning.base.errors import UslError
from usl_lightning.chain.naming import label_file_in, spelled_out
from usl_lightning.cli import main
from usl_lightning.data.images.opening import open_source
from usl_lightning.evaluation.told import HeldOut, Told
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.sorting import folder_names

COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 60), "red": (220, 30, 40)}


def picture(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-25, 25, (16, 16, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours, more of them without a class, and a finished run on them."""
    folder = tmp_path_factory.mktemp("named")
    for number in range(8):
        for name, colour in COLOURS.items():
            picture(folder / "photos" / "train" / name / f"{number}.png", colour, number)
            picture(folder / "photos" / "test" / name / f"{number}.png", colour, 100 + number)
    picture(folder / "new" / "may" / "1.png", COLOURS["red"], 200)
    picture(folder / "new" / "2.png", COLOURS["blue"], 201)
    network = {"model.backbone": "small", "model.pretrained": False}
    stages = [
        {"name": "select", "command": "select", "config": "folder_random.yaml", "set": {"model.budget": 12}},
        {
            "name": "train", "command": "fit", "config": "folder_probe.yaml",
            "set": {**network, "data.labels": "${select.labels}"},
        },
    ]  # fmt: skip
    content = {"set": {"data.dir": str(folder / "photos"), "data.image_size": 16, "data.channels": 3}, "stages": stages}
    (folder / "photos.yaml").write_text(yaml.safe_dump(content))
    main(["run", str(folder / "photos.yaml"), "--out", str(folder / "runs")])
    return folder


def usl(*words: object) -> None:
    main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        usl(*words)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("usl")]
    assert len(lines) == 1
    return lines[0]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_test_takes_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usl("test", home / "runs" / "photos")
    told = capsys.readouterr().out.splitlines()
    result = json.loads((home / "runs/photos/train/result.json").read_text())
    assert any(f"{result['test_accuracy']:.4f}" in line for line in told)
    assert told[-1] == f"next: usl predict {home}/runs/photos/train FOLDER"


def test_predict_takes_a_run_and_a_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usl("predict", home / "runs" / "photos", home / "new", "--all-probabilities")
    path = home / "runs/photos/train/predictions_new.csv"
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [
        f"2 predictions: {path}",
        f"next: usl predict {home}/runs/photos/train {home}/new --sort-into DIR copies the images by class",
    ]
    found = {row["image"]: row for row in rows(path)}
    assert set(found) == {"2.png", "may/1.png"}
    for row in found.values():
        every = {name: float(row[f"probability of {name}"]) for name in COLOURS}
        assert sum(every.values()) == pytest.approx(1, abs=1e-5)
        assert max(every, key=lambda name: every[name]) == row["label"]
        assert every[row["label"]] == pytest.approx(float(row["probability"]))


def test_images_are_copied_by_class(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usl("predict", home / "runs/photos", home / "new", "--sort-into", tmp_path / "sorted", "--out", tmp_path / "p.csv")
    expected = {tmp_path / "sorted" / row["label"] / row["image"]: row["image"] for row in rows(tmp_path / "p.csv")}
    assert set((tmp_path / "sorted").rglob("*.png")) == set(expected)
    for copy, image in expected.items():
        assert copy.read_bytes() == (home / "new" / image).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "sorted"], "nothing half done is left"
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith(f"next: usl export {home}/runs/photos/train --out model.onnx")


def test_nothing_is_mixed_into_a_folder_that_is_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sorted").mkdir()
    (tmp_path / "sorted" / "mine.txt").write_text("mine")
    out = tmp_path / "p.csv"
    words = ("predict", home / "runs/photos", home / "new", "--sort-into", tmp_path / "sorted", "--out", out)
    line = refused(capsys, *words)
    assert line == (
        f"usl predict: --sort-into {tmp_path}/sorted: it is there already; expected a new folder, or an empty one, so "
        "that nothing is mixed"
    )
    assert not out.exists()
    (tmp_path / "sorted" / "mine.txt").unlink()
    usl(*words)
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 2, "an empty one is as good as none"


def test_copies_do_not_become_images_of_the_folder_they_are_of(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = home / "new" / "may" / "sorted"
    words = ("predict", home / "runs/photos", home / "new", "--out", tmp_path / "p.csv", "--sort-into", target)
    assert refused(capsys, *words).startswith(f"usl predict: --sort-into {target}: inside the folder of the images")
    assert not target.exists()


def test_names_that_are_no_folders() -> None:
    assert folder_names(["a/b", "a_b", "A_B", "..", "", "cat"]) == ["a_b", "a_b_2", "A_B_3", "_", "__2", "cat"]


def test_words_are_spelled_out(home: Path) -> None:
    run = home / "runs/photos"
    stage = [f"--config={run}/train/config.yaml", f"--run_dir={run}/train"]
    assert spelled_out("test", [str(run)]) == [*stage, "--ckpt_path=last"]
    assert spelled_out("test", [str(run / "train")]) == [*stage, "--ckpt_path=last"]
    assert spelled_out("export", [str(run), "--ckpt_path=x.ckpt", "--out", "m.onnx"]) == [
        *stage, "--ckpt_path=x.ckpt", "--out", "m.onnx",
    ]  # fmt: skip
    assert spelled_out("predict", [str(run), "new", "--out", "x.csv"]) == [
        *stage, "--ckpt_path=last", "--folder=new", "--out", "x.csv",
    ]  # fmt: skip
    assert spelled_out("fit", [str(run)]) == [str(run)], "that one makes runs"
    assert spelled_out("test", ["--config", "a.yaml"]) == ["--config", "a.yaml"]


def test_a_classifier_from_python(home: Path) -> None:
    run = home / "runs/photos"
    usl("predict", run, home / "new", "--all-probabilities")
    expected = rows(run / "train/predictions_new.csv")
    state = torch.random.get_rng_state()
    classifier = Classifier.load(run)
    assert torch.equal(state, torch.random.get_rng_state())
    assert classifier.classes == tuple(COLOURS)
    told = classifier.predict(home / "new")
    assert told.files == tuple(row["image"] for row in expected)
    assert told.labels == tuple(row["label"] for row in expected)
    for row, probabilities in zip(expected, told.probabilities.tolist(), strict=True):
        assert probabilities == pytest.approx([float(row[f"probability of {name}"]) for name in COLOURS], abs=1e-5)
    paths = [home / "new" / row["image"] for row in expected]
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(each) for each in pictures])
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for same in (paths, pictures, arrays, list(arrays), tensor, list(tensor)):
        assert torch.equal(classifier.predict(same).probabilities, told.probabilities)
    for one in (paths[0], pictures[0], arrays[0], tensor[0]):
        assert torch.allclose(classifier.predict(one).probabilities, told.probabilities[:1], atol=1e-6)
    mixed = [paths[0], pictures[1]] if len(paths) == 2 else paths
    assert torch.equal(classifier.predict(mixed).probabilities, told.probabilities)
    checkpoint = run / "train/checkpoints/last.ckpt"
    assert torch.equal(Classifier.load(checkpoint).predict(paths).probabilities, told.probabilities)
    with pytest.raises(UslError, match="select: no classifier; expected a stage that learned from labels"):
        Classifier.load(run / "select")


@pytest.fixture(scope="module")
def colours(home: Path) -> Classifier:
    """The classifier of the run."""
    return Classifier.load(home / "runs/photos")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "I;16B", "RGBX", "RGBa"]
)
def test_an_image_is_seen_as_its_file_would_be(mode: str, colours: Classifier, home: Path, tmp_path: Path) -> None:
    colour = Image.open(home / "new/2.png").convert("RGB")
    if mode.startswith("I"):
        deep = np.asarray(colour.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32)).convert(mode)
        Image.fromarray(deep).save(tmp_path / "x.png")
    else:
        image = colour.convert("RGBA").convert(mode) if mode == "RGBa" else colour.convert(mode)
        (image if mode in ("1", "L", "LA", "P", "RGBA") else image.convert("RGB")).save(tmp_path / "x.png")
    assert image.mode == mode
    expected = colours.predict(tmp_path / "x.png").probabilities
    torch.testing.assert_close(colours.predict(image).probabilities, expected)


def test_alpha_and_orientation_of_an_image_count(colours: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    expected = colours.predict(tmp_path / "alpha.png").probabilities
    for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        torch.testing.assert_close(colours.predict(image).probabilities, expected)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(pixels[:, :, :3]).save(tmp_path / "turned.png", exif=tags)
    upright = Image.fromarray(np.rot90(pixels[:, :, :3], -1).copy())
    expected = colours.predict(upright).probabilities
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        torch.testing.assert_close(colours.predict(image).probabilities, expected)


def test_grey_arrays_are_images_of_one_channel(colours: Classifier) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)
    expected = colours.predict(np.repeat(grey[..., None], 3, 3)).probabilities
    for images in (grey, grey[..., None], list(grey), torch.from_numpy(grey)[:, None]):
        torch.testing.assert_close(colours.predict(images).probabilities, expected)
    for image in (grey[0], grey[0, :, :, None]):
        torch.testing.assert_close(colours.predict(image).probabilities, expected[:1])


BLANK = np.zeros((16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ([], "no image is given"),
        (BLANK / 255.0, r"image 0: float64 \[16, 16, 3\]; expected a file, or an image"),
        (BLANK.transpose(2, 0, 1), r"\[3, 16, 16\] may be one image or several; expected \[h, w, 3\] of one"),
        (BLANK[:0], r"image 0: uint8 \[0, 16, 3\]; expected"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), r"image 0: uint8 \[16, 3, 16\]; expected"),
        (None, "images: NoneType; expected a file"),
        (5, "images: int; expected a file"),
        (b"x", "images: bytes; expected a file"),
        ([BLANK, None], "image 1: NoneType; expected a file"),
        (Image.fromarray(BLANK[:, :, 0].astype(np.float32)), "image 0: of mode F, whose range is not known"),
        (["nowhere.png"], "nowhere.png: no such image file"),
    ],
)
def test_what_is_no_image_is_said(images: Any, line: str, colours: Classifier) -> None:
    with pytest.raises(UslError, match=line):
        colours.predict(images)


def test_the_label_file_of_a_run(home: Path, tmp_path: Path) -> None:
    assert label_file_in(home / "runs/photos") == home / "runs/photos/select/labels.json"
    assert label_file_in(home / "runs/photos/select") == home / "runs/photos/select/labels.json"


def test_what_is_no_run_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "predict", home / "runs" / "photo", home / "new")
    assert line.startswith(f"usl predict: {home}/runs/photo: no such folder")
    assert "did you mean 'photos'?" in line
    (home / "photo.png").write_bytes(b"")
    assert f"{home}/photo.png: a file, not a folder" in refused(capsys, "report", home / "photo.png")
    assert "a file, not a folder" in refused(capsys, "predict", home / "runs" / "photos", home / "photo.png")
    assert "not the folder of a run; expected runs/NAME" in refused(capsys, "test", home / "photos")
    assert "no classifier is trained in this run yet" in refused(capsys, "test", _unfinished(home, tmp_path))
    assert "no images are selected in this run yet" in refused(
        capsys, "label", _unfinished(home, tmp_path, select=False)
    )
    assert "no such folder" in refused(capsys, "label", home / "nothing")


def _unfinished(home: Path, folder: Path, select: bool = True) -> Path:
    """A run whose classifier is not trained yet."""
    run = folder / ("chosen" if select else "begun")
    (run / "select").mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text((home / "runs/photos/run.json").read_text())
    (run / "select/stage.json").write_text((home / "runs/photos/select/stage.json").read_text())
    if select:
        LabelIndex.read(home / "runs/photos/select/labels.json").write(run / "select/labels.json")
    return run


def test_the_report_shows_predictions(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "runs/photos"
    usl("report", run, "--out", tmp_path / "report.html")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: usl predict {run} FOLDER classifies other images"
    page = (tmp_path / "report.html").read_text()
    part = page.partition('id="predictions"')[2].partition("</section>")[0]
    told = Told.read(run / "train/outputs/predictions.npz")
    assert told is not None
    for label, name in enumerate(COLOURS):
        assert f"<h5>{name}: {told.of_class(label, 1)[0]} of 24 images</h5>" in part
    unsure = part.partition("<h4>Most unsure</h4>")[2].partition("<h4>")[0]
    assert unsure.count("<img") == 12, "those that have no label"
    assert all(f"{name}/" in part for name in COLOURS)
    assert "None." in part.partition("Labels that look wrong")[2]
    assert '<a href="#predictions">Predictions</a>' in page


def test_each_picture_of_predictions_is_a_link_to_the_labelling_page(home: Path, tmp_path: Path) -> None:
    run, out = home / "runs/photos", tmp_path / "else where" / "report.html"
    out.parent.mkdir()
    usl("report", run, "--out", out)
    part = out.read_text().partition('id="predictions"')[2].partition("</section>")[0]
    assert f"usl label {run}/select/labels.json" in part
    links = re.findall(r'<a href="([^"#]*)#([^"]*)"[^>]*><img [^>]*alt="([^"]*)"', part)
    assert len(links) == part.count("<img") > 12
    files = open_source("folder", "train", dir=home / "photos").files
    assert files is not None
    for page, place, text in links:
        assert (out.parent / unquote(page)).resolve() == (run / "select/label.html").resolve()
        asked = parse_qs(unescape(place))
        assert [files[int(image)] for image in asked["image"]] == asked["name"]
        assert text.endswith(f", {asked['name'][0]}")


def test_without_a_page_that_leads_there_pictures_are_no_links(home: Path, tmp_path: Path) -> None:
    page = home / "runs/photos/select/label.html"
    page.unlink(missing_ok=True)
    page.mkdir()  # as good as a file of somebody else
    try:
        usl("report", home / "runs/photos", "--out", tmp_path / "report.html")
    finally:
        page.rmdir()
    part = (tmp_path / "report.html").read_text().partition('id="predictions"')[2].partition("</section>")[0]
    assert "<a " not in part
    assert "with --image and its name" in part


def test_the_report_doubts_a_wrong_label(home: Path, tmp_path: Path) -> None:
    path, run = home / "runs/photos/train/outputs/predictions.npz", home / "runs/photos"
    kept = path.read_bytes()
    told = Told.read(path)
    assert told is not None
    rows, given, held = told.held_out
    wrong = given.clone()
    wrong[0] = (given[0] + 1) % 3
    held[0] = torch.nn.functional.one_hot(given[0], 3).float()
    try:
        replace(told, held_out=HeldOut(rows, wrong, held)).write(path)
        usl("report", run, "--out", tmp_path / "report.html")
    finally:
        path.write_bytes(kept)
    part = (tmp_path / "report.html").read_text().partition("Labels that look wrong")[2].partition("</section>")[0]
    names = list(COLOURS)
    assert f"<strong>labelled {names[int(wrong[0])]}</strong>" in part
    assert f"rather {names[int(given[0])]}, 100%" in part
    assert f"select/label.html#image={int(rows[0])}&amp;name=" in part


def test_a_finished_run_that_cannot_be_written_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("usl_lightning.chain.pipeline.unwritable", lambda folder: f"{folder}: cannot be written")
    monkeypatch.setattr("usl_lightning.stage.folder.open_lock", lambda path: pytest.fail("written to"))
    words = ["run", str(home / "photos.yaml"), "--out", str(home / "runs")]
    main(words)
    told = capsys.readouterr().out
    assert "[2/2] train: complete, skipped" in told
    assert "next: " in told
    with pytest.raises(SystemExit):
        main([*words, "--redo", "train"])
    assert capsys.readouterr().err.endswith("cannot be written; choose another --name or --out\n")
