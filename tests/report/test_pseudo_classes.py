"""The report's galleries of pseudo-classes: the purest first, random ones, and what cannot be shown."""

from pathlib import Path
from xml.etree import ElementTree

import html5lib
import numpy as np
import pytest
import torch
from made_run import make_run

from usl_lightning.report import pseudo_classes
from usl_lightning.report.page import write_report

OF_FIRST_HEAD = [0] * 8 + [1] * 4 + [2] * 4 + [1] * 4 + [4] * 4
"""Of 24 images, 8 of each class: label 0 is of the first class, 1 of two, 2 and 4 of one, 3 of none."""


def written(folder: Path, labels: np.ndarray) -> Path:
    """A run whose first stage has left these."""
    run = make_run(folder)
    (run / "pretrain" / "outputs").mkdir()
    np.save(run / "pretrain" / "outputs" / "self_labels.npy", labels)
    return run


def section(run: Path) -> ElementTree.Element:
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    page = parser.parse(write_report(run).read_text(encoding="utf-8"))
    return next(each for each in page.iter() if each.get("id") == "pseudo-classes")


def titles(part: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in part.iter() if each.tag in ("h3", "h4", "h5")]


def test_the_purest_come_first_the_larger_before_the_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_classes, "IMAGES", 3)
    run = written(tmp_path, np.array([OF_FIRST_HEAD, [0] * 24]))
    part = section(run)
    found = titles(part)
    assert found[:2] == ["SimCLR (pretrain): head 1 of 2", "The purest"]
    assert [title.partition(":")[0] for title in found[2:6]] == [f"Pseudo-class {number}" for number in (0, 2, 4, 1)]
    assert "8 images, 100% " in found[2]
    assert "8 images, 50% " in found[5]
    assert found[6] == "Random ones"
    assert sorted(title.partition(":")[0] for title in found[7:]) == [f"Pseudo-class {n}" for n in (0, 1, 2, 4)]
    assert len(list(part.iter("img"))) == 2 * 4 * 3


def test_without_classes_there_are_random_ones_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = pseudo_classes.open_images

    def unlabelled(config: object) -> object:
        source = opened(config)  # type: ignore[arg-type]
        source.labels = torch.full_like(source.labels, -1)
        return source

    monkeypatch.setattr(pseudo_classes, "open_images", unlabelled)
    monkeypatch.setattr(pseudo_classes, "SHOWN", 2)
    found = titles(section(written(tmp_path, np.array([OF_FIRST_HEAD]))))
    assert found[1] == "Random ones"
    assert len(found) == 4
    assert found[2].endswith("images")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros((1, 23), np.int64), "[1, 23] int64; expected labels of 24 images"),
        (np.zeros((1, 24)), "[1, 24] float64; expected labels"),
        (np.full((1, 24), 24), "24 to 24; expected from 0, and fewer labels than images"),
        (np.full((1, 24), -1), "-1 to -1; expected from 0"),
    ],
)
def test_other_labels_are_said_not_to_be_shown(labels: np.ndarray, said: str, tmp_path: Path) -> None:
    text = "".join(section(written(tmp_path, labels)).itertext())
    assert "self_labels.npy: holds" in text
    assert said in text


def test_the_choice_of_random_ones_repeats(tmp_path: Path) -> None:
    run = written(tmp_path, np.array([OF_FIRST_HEAD]))
    first, again = (ElementTree.tostring(section(run)) for _ in range(2))
    assert first == again
