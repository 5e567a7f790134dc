"""What has changed in the labels of a run is told in words."""

import json
from pathlib import Path

import pytest

from usl_lightning.base.errors import UslError
from usl_lightning.stage.answers import answers_in, in_words
from usl_lightning.stage.folder import StageFolder

INDEX = {
    "format": "usl-label-index",
    "version": 1,
    "dataset": {"name": "folder", "split": "train", "size": 90, "fingerprint": "sha256:" + "0" * 64},
    "method": {},
    "indices": [3, 50, 7, 9],
    "labels": [0, 1, None, None],
    "classes": ["cat", "dog"],
    "unsure": [9],
}


def written(path: Path, **more: object) -> Path:
    path.write_text(json.dumps({**INDEX, **more}))
    return path


def test_answers_are_names(tmp_path: Path) -> None:
    path = written(tmp_path / "labels.json")
    assert answers_in(path) == {"3": "cat", "50": "dog", "7": None, "9": "not sure"}
    assert answers_in(written(path, classes=[], labels=[0, 1, None, None])) == {
        "3": "0",
        "50": "1",
        "7": None,
        "9": "not sure",
    }


@pytest.mark.parametrize(("change", "words"), [
    ({"labels": [1, 1, None, None]}, "1 answer"),
    ({"labels": [1, 0, None, None]}, "2 answers"),
    ({"labels": [0, 1, None, 1], "unsure": []}, "1 answer"),
    ({"classes": ["dog", "cat"]}, "2 answers"),
    ({"classes": ["dog", "cat"], "labels": [1, 0, None, None]}, "its answers are the same, something else is not"),
    ({"indices": [3, 50, 7, 10], "unsure": [10]}, "2 images are only in one of both"),
    ({"indices": [50, 3, 7, 9], "labels": [0, 1, None, None]}, "2 answers"),
])  # fmt: skip
def test_changes_are_counted(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = written(tmp_path / "labels.json")
    before = answers_in(path)
    assert in_words(written(path, **change), before) == f"{path} changed: {words}"


def test_a_stage_tells_what_changed_since_it_began(tmp_path: Path) -> None:
    path, folder = written(tmp_path / "labels.json"), StageFolder(tmp_path / "run")
    old, new = ({"data.labels": f"sha256:{letter}", "model.k": k} for letter, k in (("a", 1), ("b", 2)))
    folder.begin(old, path)
    written(path, labels=[1, 0, None, None])
    both = [f"{path} changed: 2 answers", "model.k was 1, now 2"]
    assert folder.changes(new, path) == both
    folder.finish(old, 1.0, {})
    assert folder.changes(new, path) == both
    assert folder.changes(old, path) == []
    assert folder.changes(new) == ["data.labels was a file of other content", both[1]]
    path.write_text("[")
    assert folder.changes(new, path)[0].startswith(f"data.labels is another file ({path}: not JSON")


def test_an_earlier_versions_record_has_no_answers(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "run")
    folder.begin({"data.labels": "sha256:a"})
    assert folder.changes({"data.labels": "sha256:b"}, "x.json") == ["data.labels was a file of other content"]
    with pytest.raises(UslError):
        folder.begin({}, tmp_path / "none.json")
