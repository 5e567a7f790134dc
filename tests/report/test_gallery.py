"""Pictures of what was chosen: every image in its place, captions that fit, accuracies as bars."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from usl_lightning.pictures.gallery import BAR, INK, PAD, TILE, chosen_strip, summary_picture


def test_images_stand_in_order(tmp_path: Path) -> None:
    images = torch.arange(12, dtype=torch.uint8).mul(20).view(12, 1, 1, 1).expand(12, 1, 8, 8)
    chosen_strip(images, [f"a very long class name {i}" for i in range(12)], tmp_path / "a.png", columns=5)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    for i in range(12):
        x, y = PAD + i % 5 * (TILE + PAD), PAD + i // 5 * (TILE + 18 + PAD)
        assert (sheet[y : y + TILE, x : x + TILE] == 20 * i).all()
        assert sheet[y + TILE + 1 : y + TILE + 17, x : x + TILE].min() < 100, "a caption below it"


def test_bars_are_as_long_as_the_accuracies(tmp_path: Path) -> None:
    chosen_strip(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), ["x"] * 10, tmp_path / "a.png")
    results = [
        {"selection": "usl", "budget": 10, "classes_covered": 9, "class_counts": [1] * 10, "method": "fixmatch",
         "test_accuracy": accuracy}
        for accuracy in (0.8, 0.4, None)
    ]  # fmt: skip
    summary_picture(results, [tmp_path / "a.png"] * 3, tmp_path / "summary.png")
    sheet = np.asarray(Image.open(tmp_path / "summary.png"))
    lengths = (sheet == BAR).all(-1).sum(1)
    longest = [int(n) for n in np.unique(lengths) if n > 5]
    assert len(longest) == 2
    assert abs(longest[0] / longest[1] - 0.5) < 0.01


def test_an_estimate_has_a_bar_and_its_interval_a_line_where_no_test_images_tell(tmp_path: Path) -> None:
    chosen_strip(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), ["x"] * 10, tmp_path / "a.png")
    told = {"estimated_accuracy": 0.6, "estimated_interval": [0.4, 0.7]}
    known = {"selection": "usl", "budget": 10, "classes_covered": 9, "class_counts": [1] * 10, "method": "blend"}
    results = [{**known, **told, "test_accuracy": None}, {**known, **told, "test_accuracy": 0.8}]
    summary_picture(results, [tmp_path / "a.png"] * 2, tmp_path / "summary.png")
    sheet = np.asarray(Image.open(tmp_path / "summary.png"))
    full = sheet.shape[1] - 4 * PAD
    for first, length in ((PAD, 0.6), (PAD + sheet.shape[0] // 2 - PAD // 2, 0.8)):
        blue = (sheet[first + 46] == BAR).all(-1)
        assert abs(blue.sum() - length * full) < 2
    line = np.flatnonzero((sheet[PAD + 49] == INK).all(-1)) - 2 * PAD
    assert abs(line[0] - 0.4 * full) < 2
    assert abs(line[-1] - 0.7 * full) < 2
    assert (sheet[PAD + sheet.shape[0] // 2 - PAD // 2 + 49] == BAR).all(-1).sum() > 0.79 * full, "no line"
