"""The formats of a label index: JSON (ours, or a plain list), `.npy`, CSV `Index,ImageID[,Pseudolabel]`.

Used through `LabelIndex.read` and `LabelIndex.write`.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from usl_lightning.base.arrays import load_array
from usl_lightning.base.atomic import atomic_path, read_file
from usl_lightning.base.documents import guarded, unguarded
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.base.files import parse_json, write_json
from usl_lightning.labels.entries import DatasetId, Entries, refuse, short
from usl_lightning.labels.names import checked
from usl_lightning.labels.tables import parse_rows

FORMAT = "usl-label-index"
VERSION = 1
_KEYS = (
    "format", "version", "dataset", "method", "indices", "labels", "classes", "files", "hashes", "unsure", "followers",
    "bulk", "soft", "added",
)  # fmt: skip

COLUMNS = ("Index", "ImageID", "Pseudolabel")
_HEADERS = (COLUMNS[:1], COLUMNS[:2], COLUMNS, COLUMNS[::2])


def read(path: Path) -> Entries:
    """Read a file by its suffix; what can be wrong with its entries is checked by the caller.

    Raises:
        UslError: the file is missing or not of its format.
    """
    reader = {".json": _read_json, ".npy": _read_npy, ".csv": _read_csv}.get(path.suffix.lower())
    if reader is None:
        raise UslError(f"{path}: a label index is a .json, .npy or .csv file")
    try:
        content = read_file(path)
    except OSError as error:
        raise UslError(f"{path}: label index cannot be read ({error.strerror})") from error
    return reader(path, content)


def write(index: Entries, path: Path) -> None:
    """Write a file atomically, in the format of its suffix; `.npy` and `.csv` carry no labels of a known data set.

    Raises:
        UslError: another suffix, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        write_json(path, _to_json(index))
    elif suffix == ".npy":
        import numpy as np

        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.asarray(index.indices, dtype=np.int64), allow_pickle=False)
    elif suffix == ".csv":
        names = index.files or [str(i) for i in index.indices]
        columns = [index.indices, [guarded(name) for name in names]]
        if index.dataset is None and not index.plain:  # labels of a file that says no more than this one
            columns.append(index.labels)
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as text:
            csv.writer(text).writerows([COLUMNS[: len(columns)], *zip(*columns, strict=True)])
    else:
        raise UslError(f"{path}: a label index is a .json, .npy or .csv file")


def _plain(path: Path, indices: list[Any], files: tuple[str, ...] | None = None) -> Entries:
    return Entries(None, {}, tuple(indices), (None,) * len(indices), (), files, str(path))


def _read_json(path: Path, content: bytes) -> Entries:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise UslError(f"{path}: not JSON ({error}); expected a label index or a list of indices") from error
    if isinstance(value, list):
        return _plain(path, value)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UslError(f'{path}: not a label index; expected a list, or an object with "format": "{FORMAT}"')
    if value.get("version") != VERSION:
        raise UslError(f"{path}: version {short(value.get('version'))}; this program reads {VERSION}")
    for key in value:
        if key not in _KEYS:
            raise UslError(f"{path}: unknown key '{printable(key, 60)}'{did_you_mean(key[:60], _KEYS)}")
    files = value.get("files")
    return Entries(
        _dataset_id(path, _get(path, value, "dataset", dict)),
        _get(path, value, "method", dict),
        tuple(_get(path, value, "indices", list)),
        tuple(_get(path, value, "labels", list)),
        _texts(path, value, "classes"),
        None if files is None else tuple(_get(path, value, "files", list)),
        str(path),
        tuple(_get(path, value, "unsure", list)) if "unsure" in value else (),
        _followers(path, value) if "followers" in value else (),
        tuple(_get(path, value, "hashes", list)) if "hashes" in value else (),
        tuple(_get(path, value, "bulk", list)) if "bulk" in value else (),
        _get(path, value, "soft", dict) if "soft" in value else {},
        tuple(_get(path, value, "added", list)) if "added" in value else (),
    )


def _get(path: Path, value: dict[str, Any], key: str, kind: type) -> Any:
    if key not in value:
        raise UslError(f"{path}: key '{key}' is missing")
    if type(value[key]) is not kind:
        names = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
        raise UslError(f"{path}: '{key}' is {short(value[key])}, expected {names[kind]}")
    return value[key]


def _texts(path: Path, value: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = _get(path, value, key, list)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UslError(f"{path}: entry {i} of '{key}' is {short(text)}, expected a text")
    return checked(texts, f"{path}: '{key}'")


def _followers(path: Path, value: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
    lists = _get(path, value, "followers", list)
    for i, followers in enumerate(lists):
        if not isinstance(followers, list):
            raise UslError(f"{path}: entry {i} of 'followers' is {short(followers)}, expected a list of indices")
    return tuple(map(tuple, lists))


def _dataset_id(path: Path, value: dict[str, Any]) -> DatasetId:
    size = _get(path, value, "size", int)
    fingerprint = _get(path, value, "fingerprint", str)
    if size < 0 or not re.fullmatch("sha256:[0-9a-f]{64}", fingerprint):
        raise UslError(f"{path}: 'dataset' has size {size} and fingerprint {short(fingerprint)}: damaged")
    return DatasetId(_get(path, value, "name", str), _get(path, value, "split", str), size, fingerprint)


def _to_json(index: Entries) -> Any:
    if index.dataset is None:
        if not index.plain:
            raise UslError(f"{index.path or 'label index'}: labels cannot be written without a data set")
        return list(index.indices)
    value: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": vars(index.dataset),
        "method": index.method,
        "indices": index.indices,
        "labels": index.labels,
        "classes": index.classes,
    }
    if index.files is not None:
        value["files"] = index.files
    if index.unsure:
        value["unsure"] = index.unsure
    if index.followers:
        value["followers"] = index.followers
    if index.hashes:
        value["hashes"] = index.hashes
    if index.bulk:
        value["bulk"] = index.bulk
    if index.soft:
        value["soft"] = index.soft
    if index.added:
        value["added"] = index.added
    return value


def _read_npy(path: Path, content: bytes) -> Entries:
    array = load_array(path, content=content)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UslError(f"{path}: {array.dtype} {list(array.shape)}, expected whole numbers [n]")
    return _plain(path, array.tolist())


def _read_csv(path: Path, content: bytes) -> Entries:
    rows = parse_rows(path, content)
    header = tuple(rows[0][1]) if rows else ()
    if header not in _HEADERS:
        raise UslError(
            f"{path}: first line is {short(','.join(header) or 'nothing')}, expected {','.join(COLUMNS[:2])}, and "
            f"perhaps {COLUMNS[2]}"
        )
    columns: dict[str, list[Any]] = {column: [] for column in header}
    for i, (_, cells) in enumerate(rows[1:]):
        if len(cells) < len(header) or not re.fullmatch("[0-9]{1,18}", cells[0]):
            refuse(str(path), i, f"{short(','.join(cells))} is not {','.join(header)}")
        for column, cell in zip(header, cells, strict=True):
            columns[column].append(_READ[column](str(path), i, cell))
    indices, files, labels = (columns.get(column) for column in COLUMNS)
    plain = _plain(path, indices or [], None if files is None else tuple(files))
    return plain if labels is None else replace(plain, labels=tuple(labels))


def _pseudolabel(where: str, entry: int, cell: str) -> int:
    number = re.fullmatch(r"([0-9]{1,18})(\.0*)?", cell)
    if number is None:
        refuse(where, entry, f"{COLUMNS[2]} {short(cell)} is no class number; leave out rows without one")
    return int(number[1])


_READ: dict[str, Callable[[str, int, str], Any]] = {
    COLUMNS[0]: lambda where, entry, cell: int(cell),
    COLUMNS[1]: lambda where, entry, cell: unguarded(cell),
    COLUMNS[2]: _pseudolabel,
}
