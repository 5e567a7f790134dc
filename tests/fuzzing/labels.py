"""Readers of what people write: label indices, answers, tables, lists."""

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing import Reader
from fuzzing.containers import ARRAY
from fuzzing.mutations import JSON, TABLE
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.splits import read_class_list
from usl_lightning.labelling.answers import by_number, read_answers
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import DatasetId
from usl_lightning.labels.tables import label_cells, labels_in

DATASET = {"name": "folder", "split": "train", "size": 60, "fingerprint": "sha256:" + "0123456789abcdef" * 4}
FILES = ["a/17.png", "4.png", "caf\u00e9.png"]
INDEX = {
    "format": "usl-label-index", "version": 1, "dataset": DATASET, "method": {"name": "usl", "params": {"k": 5}},
    "indices": [17, 4, 9], "labels": [1, None, 0], "classes": ["cat", "dog"], "files": FILES,
    "hashes": ["sha256:" + digit * 64 for digit in "abc"],
}  # fmt: skip


def _json(*values: Any) -> list[bytes]:
    return [
        json.dumps(value, ensure_ascii=bool(i % 2), indent=i % 3 or None).encode() for i, value in enumerate(values)
    ]


def _tasks() -> list[bytes]:
    choice = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    full = [
        {"id": 1, "data": {"image": "/x", "index": 17, "file": FILES[0]}, "annotations": [{"result": [choice]}]},
        {"id": 2, "data": {"image": "/y", "index": 4}, "annotations": [{"was_cancelled": True, "result": []}]},
        {"id": 3, "data": {"file": FILES[2]}, "completions": [{"result": [choice]}], "predictions": []},
    ]
    small = [{"id": 1, "image": "/x", "index": 17, "label": "cat", "annotator": 1}, {"id": 2, "file": "4.png"}]
    other = [{"id": 1, "image": "/x", "index": 17, "choice": {"choices": ["bird"]}, "lead_time": 1.5}]
    return _json(full, small, other, [])


def _read_index(path: Path) -> None:
    """Read an index; what it writes is read back as the same."""
    index = LabelIndex.read(path)
    if hash(index.indices) % 20 == 0 and (index.dataset is not None or index.plain):
        again = path.with_name("again.json")
        index.write(again)
        assert LabelIndex.read(again).indices == index.indices
    with suppress(UslError):
        index.for_training()


def _read_answers(path: Path) -> None:
    index = LabelIndex(
        DatasetId(**DATASET), {}, (17, 4, 9), (None,) * 3, ("cat", "dog"), tuple(FILES)  # type: ignore[arg-type]
    )  # fmt: skip
    answers, classes = by_number(read_answers(path, index), index)
    assert set(answers) <= set(index.indices)
    assert classes[:2] == ("cat", "dog")


def _read_table(path: Path) -> None:
    for known in ((), ("cat", "none")):
        labels_in(path, label_cells(path), known)


def _classes(path: Path) -> None:
    read_class_list(path)


def _arrays() -> list[bytes]:
    import numpy as np

    contents = []
    for array in (np.arange(5), np.array([3, 1], np.uint16), np.array([7], ">i4"), np.zeros(0, np.int8)):
        file = io.BytesIO()
        np.save(file, array)
        contents.append(file.getvalue())
    return contents


READERS = (
    Reader("label_json", ".json", lambda: _json(INDEX, {**INDEX, "unsure": [4]}, [3, 1, 2]), _read_index, JSON),
    Reader("label_csv", ".csv", lambda: [
        b"Index,ImageID\n17,a/17.png\n4,4.png\n", b"Index\n3\n1\n", b"Index,ImageID,Pseudolabel\r\n3,3,1\r\n5,5,0\r\n",
        "\ufeffIndex,ImageID\n1,\"caf\u00e9, 1.png\"\n2,'=x.png\n".encode(),
    ], _read_index, TABLE),
    Reader("label_npy", ".npy", _arrays, _read_index, ARRAY),
    Reader("label_table", ".csv", lambda: [
        b"file,label\n1.png,cat\na/2.png,dog\n3.png,\n", b"file,label\r\n1.png,0\r\n2.png,1\r\n3.png,-1\r\n",
        b'file,label\n"1,2.png","a ""b"""\n2.png,1.0\n',
    ], _read_table, TABLE),
    Reader("label_studio_json", ".json", _tasks, _read_answers, JSON),
    Reader("label_studio_csv", ".csv", lambda: [
        b"index,file,label\n17,a/17.png,cat\n4,4.png,\n9,caf\xc3\xa9.png,not sure\n", b"index;label\n17;bird\n4;-1\n",
        b'annotation_id,annotator,id,image,index,choice\n1,1,7,/x,17,cat\n2,1,8,/y,4,"{""choices"":[""dog""]}"\n',
    ], _read_answers, TABLE),
    Reader("class_list", ".txt", lambda: [b"n01 cat\nn02 dog\n# x\n\nn03\n", b"\xef\xbb\xbfa\r\nb\r\n"], _classes),
)  # fmt: skip
