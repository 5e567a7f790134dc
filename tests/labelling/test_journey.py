"""From a folder of 2,000 images without labels to a classifier, with the README's commands and a person at the page."""

import csv
import re
from pathlib import Path

import pytest
from browsing import answered, name_shown, needs_browser, opened
from own_images import Labelling
from PIL import Image
from playwright.sync_api import Browser, expect
from runs import usl

from usl_lightning.base.errors import UslError
from usl_lightning.data.images.opening import open_source
from usl_lightning.labels import LabelIndex

pytestmark = [pytest.mark.slow, needs_browser]

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
KEYS = "1234567890"


def export(folder: Path, split: str, count: int) -> dict[str, int]:
    """The first images of Fashion-MNIST as PNG files; file -> class."""
    try:
        source = open_source("fashion_mnist", split)
    except UslError as error:
        pytest.skip(str(error))
    folder.mkdir()
    for i in range(count):
        Image.fromarray(source.images[i, 0].numpy()).save(folder / f"{i:04d}.png")
    return {f"{i:04d}.png": int(source.labels[i]) for i in range(count)}


def test_a_folder_becomes_a_classifier(browser: Browser, tmp_path: Path) -> None:
    known = export(tmp_path / "photos", "train", 2000)
    later = export(tmp_path / "more_photos", "test", 200)
    found = usl(tmp_path, "init", "photos", "--classes", "10", "--budget", "40", "--minutes", "1").done().out
    assert "2,000 grey images" in found
    stopped = usl(tmp_path, "run", "photos.yaml")
    assert stopped.code == 3, stopped
    labels = tmp_path / "runs/photos/select/labels.json"
    assert f"40 images to label: usl label {labels.relative_to(tmp_path)}" in stopped.out
    assert not (tmp_path / "runs/photos/train").exists()

    server = Labelling(labels)
    page = opened(browser, server.address)
    page.keyboard.type(", ".join(CLASSES))
    page.keyboard.press("Enter")
    expect(page.locator("#classes button")).to_have_count(10)
    for number in range(1, 41):
        if number == 18:
            server.kill()
            assert LabelIndex.read(labels).unlabelled == 23
            server = Labelling(labels)
            page = opened(browser, server.address)
        page.keyboard.press(KEYS[known[name_shown(page, number)]])
        answered(page, number)
    expect(page.locator("#done")).to_contain_text("usl run photos.yaml")
    server.kill()

    ended = usl(tmp_path, "run", "photos.yaml").done().out
    assert "[2/3] select: complete, skipped" in ended
    usl(tmp_path, "report", "runs/photos").done()
    report = (tmp_path / "runs/photos/report.html").read_text()
    assert "40 chosen by KMeansNearest" in report
    assert not re.search(r"(src|href)=\"http", report)
    usl(
        tmp_path, "predict", "--config", "runs/photos/train/config.yaml", "--ckpt_path", "last",
        "--folder", "more_photos",
    ).done()  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "runs/photos/train/predictions_more_photos.csv").open()))
    assert len(rows) == 200
    right = sum(row["label"] == CLASSES[later[Path(row["image"]).name]] for row in rows)
    assert right > 60, "of 200; guessing gets 20"
