"""What every label index must be, whatever data set it is of."""

import re
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.labels.entries import MOST_CLASSES, Entries, refuse, short

_LARGEST = 2**63 - 1
_HASH = re.compile("sha256:[0-9a-f]{64}")
_DRIVE = re.compile("[A-Za-z]:")


def validate(index: Entries, where: str, known: Entries | None = None) -> None:
    """What can be said of an index without its data set.

    Args:
        index: to look at.
        where: what it is called in messages.
        known: one that was looked at before; what is the same in memory as there is right still.

    Raises:
        UslError: names the entry.
    """

    def is_known(*keys: str) -> bool:
        return known is not None and all(getattr(index, key) is getattr(known, key) for key in keys)

    for key in ("labels", "files", "followers", "hashes"):
        values = getattr(index, key)
        needed = key == "labels" or (key == "files" and values is not None)
        if (values or needed) and len(values) != len(index.indices):
            raise UslError(f"{where}: {len(index.indices)} indices but {len(values)} {key}")
    seen: dict[int, int] = {}
    for i, value in enumerate(() if is_known("indices", "dataset") else index.indices):
        if not _is_count(value):
            refuse(where, i, f"index {short(value)} is not a whole number, 0 or more")
        if value in seen:
            refuse(where, i, f"index {value} is there twice (entry {seen[value]} is the first)")
        if index.dataset is not None and value >= index.dataset.size:
            refuse(where, i, f"index {value} is out of range, {index.dataset} ends before it")
        seen[value] = i
    for i, label in enumerate(index.labels):
        if label is not None and not _is_count(label):
            refuse(where, i, f"label {short(label)} is neither null nor a whole number, 0 or more")
        if label is not None and not index.classes and label >= MOST_CLASSES:
            refuse(where, i, f"label {label} is no class number, expected one below {MOST_CLASSES:,}")
        if label is not None and index.classes and label >= len(index.classes):
            refuse(where, i, f"label {label} is out of range, there are {len(index.classes)} classes")
    open_entries = {value for value, label in zip(index.indices, index.labels, strict=True) if label is None}
    for value in index.unsure:
        if not _is_count(value) or value not in open_entries:
            raise UslError(f"{where}: 'unsure' names {short(value)}, expected each of 'indices' without a label once")
        open_entries.discard(value)
    labelled = {value for value, label in zip(index.indices, index.labels, strict=True) if label is not None}
    for key in ("bulk", "added"):
        left = set(labelled)
        for value in getattr(index, key):
            if not _is_count(value) or value not in left:
                raise UslError(
                    f"{where}: '{key}' names {short(value)}, expected each of 'indices' with a label once at most"
                )
            left.discard(value)
    soft = index.soft
    if soft and (
        set(soft) != {"file", "source"} or not _is_inside(soft["file"]) or not isinstance(soft["source"], str)
    ):
        raise UslError(f'{where}: \'soft\' is {short(soft)}, expected "file", a path from the index on, and "source"')
    if not is_known("indices", "dataset", "followers"):
        _validate_followers(index, where, set(index.indices))
    for i, file in enumerate(() if is_known("files") else index.files or ()):
        if not _is_inside(file):
            refuse(where, i, f"file {short(file)} is not a path inside the image folder (relative, with /)")
    for i, digest in enumerate(() if is_known("files", "hashes") else index.hashes):
        if not isinstance(digest, str) or not _HASH.fullmatch(digest) or index.files is None:
            refuse(where, i, f"hash {short(digest)} is not sha256: and 64 hexadecimal digits of one of 'files'")


def _validate_followers(index: Entries, where: str, taken: set[int]) -> None:
    for i, followers in enumerate(index.followers):
        for value in followers:
            if not _is_count(value) or (index.dataset is not None and value >= index.dataset.size):
                refuse(where, i, f"follower {short(value)} is no image of the data set")
            if value in taken:
                refuse(where, i, f"follower {value} is among the indices or follows twice")
            taken.add(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_inside(file: Any) -> bool:
    if not isinstance(file, str) or not file or "\0" in file or "\\" in file:
        return False
    return not file.startswith("/") and ".." not in file.split("/") and not _DRIVE.match(file)
