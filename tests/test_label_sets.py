"""`usl labels`: union, difference and conversion of label indices, as commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from usl_lightning.cli import main
from usl_lightning.labelling.sets import main as combine
from usl_lightning.labels import LabelIndex

DATASET = {"name": "digits", "split": "train", "size": 100, "fingerprint": "sha256:" + "0" * 64}


def write(name: str, indices: list[int], labels: list[int | None], **changes: Any) -> None:
    index = {
        "format": "usl-label-index", "version": 1, "dataset": DATASET, "method": {"name": "mine"},
        "indices": indices, "labels": labels, "classes": ["a", "b"], **changes,
    }  # fmt: skip
    Path(name).write_text(json.dumps(index))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.json", [5, 3, 9], [0, None, 1])
    write("b.json", [3, 7, 5], [1, None, 0])


def test_union(capsys: pytest.CaptureFixture[str]) -> None:
    main(["labels", "union", "a.json", "b.json", "--out", "c.json"])
    result = LabelIndex.read("c.json")
    assert (result.indices, result.labels) == ((5, 3, 9, 7), (0, 1, 1, None))
    assert result.dataset is not None
    assert capsys.readouterr().out == "c.json: 4 images, 3 with a label\n"


def test_difference_whatever_the_formats() -> None:
    np.save("b.npy", np.array([3, 7, 5]))
    combine(["difference", "a.json", "b.npy", "--out", "c.json"])
    assert LabelIndex.read("c.json").indices == (9,)
    assert LabelIndex.read("c.json").labels == (1,)
    combine(["--out", "d.csv", "difference", "b.json", "a.json"])
    assert Path("d.csv").read_text().split() == ["Index,ImageID", "7,7"]


@pytest.mark.parametrize("name", ["c.npy", "c.csv"])
def test_conversion_and_back(name: str) -> None:
    combine(["convert", "a.json", "--out", name])
    combine(["convert", name, "--out", "plain.json"])
    assert json.loads(Path("plain.json").read_text()) == [5, 3, 9]


@pytest.mark.parametrize(("name", "said"), [
    ("c.csv", "c.csv: 3 images; .csv has no room for their 2 labels, .json keeps them\n"),
    ("c.json", "c.json: 3 images, 2 with a label\n"),
])  # fmt: skip
def test_labels_that_are_not_kept_are_told(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    combine(["convert", "a.json", "--out", name])
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "usl labels: unknown operation ''; use usl labels union A B --out C"),
        (["onion", "a.json", "b.json"], "unknown operation 'onion' (did you mean 'union'?)"),
        (["union", "a.json", "b.json"], "usl labels union: expected 2 label indices and --out"),
        (["union", "a.json", "b.json", "--out"], "usl labels union: expected 2 label indices and --out"),
        (["union", "a.json", "--out", "c.json"], "usl labels union: expected 2 label indices and --out"),
        (["convert", "a.json", "b.json", "--out", "c.json"], "usl labels convert: expected 1 label indices"),
        (["union", "a.json", "b.json", "--out", "a.json"], "a.json: exists already; choose another --out"),
        (["union", "a.json", "x.json", "--out", "c.json"], "x.json: label index cannot be read"),
        (["union", "a.json", "b.json", "--out", "c.txt"], "c.txt: a label index is a .json, .npy or .csv file"),
        (
            ["union", "a.json", "far.json", "--out", "c.json"],
            "far.json: entry 1: index 100 is out of range, digits/train",
        ),
        (
            ["union", "far.json", "a.json", "--out", "c.json"],
            "far.json: entry 1: index 100 is out of range, digits/train",
        ),
        (["union", "a.json", "other.json", "--out", "c.json"], "a.json was chosen from digits/train"),
        (["union", "a.json", "says1.json", "--out", "c.json"], "entry 0: image 5 has label 1, but 0 in the first"),
    ],
)
def test_mistakes(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("other.json", [1], [0], dataset={**DATASET, "fingerprint": "sha256:" + "1" * 64})
    write("says1.json", [5], [1])
    Path("far.json").write_text("[3, 100]")
    before = Path("a.json").read_text()
    with pytest.raises(SystemExit) as stop:
        main(["labels", *words])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1
    assert Path("a.json").read_text() == before
    assert not list(Path().glob("c.*"))
