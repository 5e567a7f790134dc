"""Chosen files are known by their content: a folder may grow around them, and none may be replaced."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of_file
from usl_lightning.data.images.opening import open_source, read_labels
from usl_lightning.data.images.source import ImageSource, dataset_id
from usl_lightning.data.modules import LabelledData
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.outcome import chosen_index

CHOSEN = [4, 0, 3]


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of the values 0, 10, 20, …"""
    for i in range(6):
        picture(tmp_path / "d" / ("sub" if i > 3 else "") / f"{i}.png", 10 * i)
    return tmp_path / "d"


def opened(folder: Path, **options: str) -> ImageSource:
    return open_source("folder", "train", dir=str(folder), classes=["dark", "light"], **options)


@pytest.fixture
def labels(folder: Path) -> Path:
    """A selection with labels, as `usl select` writes it."""
    index = chosen_index(opened(folder), torch.tensor(CHOSEN), {}, None)
    index = replace(index, labels=(1, 0, None), unsure=(CHOSEN[2],))
    index.write(folder.parent / "labels.json")
    return folder.parent / "labels.json"


def values(source: ImageSource, index: LabelIndex) -> list[int]:
    return source.read(torch.tensor(index.indices))[:, 0, 0, 0].tolist()


def refused(labels: Path, folder: Path, part: str) -> None:
    with pytest.raises(UslError, match=part) as error:
        read_labels(str(labels), opened(folder))
    assert str(error.value).startswith(str(labels))
    assert "\n" not in str(error.value)


def test_a_selection_notes_the_content_of_each_file(folder: Path, labels: Path) -> None:
    written = json.loads(labels.read_text())
    assert written["hashes"] == [sha256_of_file(folder / file) for file in written["files"]]
    assert LabelIndex.read(labels).hashes == tuple(written["hashes"])
    digits = chosen_index(open_source("digits", "train"), torch.tensor([3]), {}, None)
    assert digits.hashes == ()


@pytest.mark.parametrize("options", [{}, {"cache": "cache"}])
def test_a_folder_may_grow_and_every_image_keeps_its_label(
    folder: Path, labels: Path, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = read_labels(str(labels), opened(folder, **options))
    assert before == LabelIndex.read(labels)
    for name, value in (("00.png", 200), ("a/9.png", 210), ("z.png", 220)):
        picture(folder / name, value)
    (folder / "1.png").unlink()  # which was not chosen
    source = opened(folder, **options)
    index = read_labels(str(labels), source)
    assert index.indices != before.indices
    assert values(source, index) == [10 * i for i in CHOSEN]
    assert (index.labels, index.files, index.hashes) == (before.labels, before.files, before.hashes)
    assert index.unsure == (index.indices[2],)
    assert index.dataset == dataset_id(source)
    data = LabelledData(str(labels), dataset="folder", dir=str(folder), classes=["dark", "light"], batch_size=2)
    assert data.index.for_training() == (list(index.indices[:2]), [1, 0])


def test_a_file_that_was_replaced_is_refused(folder: Path, labels: Path) -> None:
    file = folder / (LabelIndex.read(labels).files or ())[1]
    content = bytearray(file.read_bytes())
    content[-20] ^= 1  # neither its name nor its size tells
    file.write_bytes(content)
    assert dataset_id(opened(folder)) == LabelIndex.read(labels).dataset
    refused(labels, folder, r"entry 1: 0\.png has another content than when it was chosen; put that file back")


def test_files_that_changed_places_are_refused(folder: Path, labels: Path) -> None:
    shutil.move(folder / "0.png", folder / "x.png")
    shutil.move(folder / "3.png", folder / "0.png")
    shutil.move(folder / "x.png", folder / "3.png")
    refused(labels, folder, "another content")


def test_a_file_that_is_gone_is_refused(folder: Path, labels: Path) -> None:
    (folder / "sub" / "4.png").unlink()
    refused(labels, folder, r'entry 0: "sub/4\.png" is not in the data; put it back')


def test_without_hashes_a_folder_that_grew_is_refused(folder: Path, labels: Path) -> None:
    replace(LabelIndex.read(labels), hashes=()).write(labels)
    read_labels(str(labels), opened(folder))
    picture(folder / "z.png", 1)
    refused(labels, folder, "but the data is folder/train")


def test_followers_have_no_names_to_be_found_by(folder: Path, labels: Path) -> None:
    replace(LabelIndex.read(labels), followers=((1,), (2,), ())).write(labels)
    read_labels(str(labels), opened(folder))
    picture(folder / "z.png", 1)
    refused(labels, folder, "its followers are of folder/train")


@pytest.mark.parametrize(("change", "part"), [
    ({"hashes": ["sha256:1"] * 3}, 'entry 0: hash "sha256:1" is not sha256: and 64 hexadecimal digits'),
    ({"hashes": ["sha256:" + "0" * 64]}, "3 indices but 1 hashes"), ({"hashes": 3}, "'hashes' is 3, expected a list"),
    ({"hashes": [None] * 3}, "entry 0: hash null"), ({"files": None}, "of one of 'files'"),
])  # fmt: skip
def test_wrong_hashes(labels: Path, change: dict[str, object], part: str) -> None:
    written = {**json.loads(labels.read_text()), **change}
    labels.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
    with pytest.raises(UslError, match=part):
        LabelIndex.read(labels)


def test_sets_of_entries_keep_their_hashes(labels: Path) -> None:
    index = LabelIndex.read(labels)
    first, rest = (
        replace(index, indices=index.indices[part], labels=index.labels[part], files=(index.files or ())[part],
                hashes=index.hashes[part], unsure=unsure)
        for part, unsure in ((slice(0, 1), ()), (slice(1, 3), index.unsure))
    )  # fmt: skip
    both = first.union(rest)
    assert (both.hashes, both.files) == (index.hashes, index.files)
    assert both.difference(first).hashes == rest.hashes
    assert first.union(replace(rest, hashes=())).hashes == ()
    other = replace(first, hashes=rest.hashes[:1])
    with pytest.raises(UslError, match="had another content than for the first"):
        first.union(other)
