"""How many images a set has, as far as can be told without reading them. Standard library only."""

import ast
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from usl_lightning.base.arrays import DAMAGE
from usl_lightning.base.errors import UslError
from usl_lightning.data.images import array_files, catalog, folders, splits

PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "digits": {"train": 1437, "test": 360},
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "svhn": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "stl10": {"train": 5_000, "test": 8_000, "unlabeled": 100_000},
}
"""Images of each split of a set, as it was published."""


def most_images(
    name: str, dir: str | None, split: str, *, class_list: str | None = None, labels_file: str | None = None
) -> int | None:
    """How many images a split has at most; None where that is not known, or it is not there.

    Args:
        name, dir, split, class_list, labels_file: as `open_source` takes them.
    """
    try:
        name = catalog.canonical_name(name)
        if name in catalog.FOLDER_SETS:
            places = splits.split_folders(name, dir)
            only = None if labels_file else splits.class_names(name, places["train"], class_list)
            return len(folders.scan(places[split], only).files)
        if name in catalog.FILE_SETS:
            path, prefix = array_files.locate(dir)[split]
            return rows_of(path, f"{prefix}images.npy")
        counts = [PUBLISHED[name][part] for part in catalog.parts_of(name, split)]
    except (UslError, IndexError, *DAMAGE):  # told by whoever reads it
        return None
    return sum(counts)


def rows_of(path: Path, name: str) -> int:
    """The length of the array in an `.npy` file, or of one of those in an `.npz` file."""
    return int(header_of(path, name)["shape"][0])


def header_of(path: Path, name: str) -> dict[str, Any]:
    """`descr`, `fortran_order` and `shape` of the array in an `.npy` file, or of one of those in an `.npz` file."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return _header(file)
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        return _header(member)


def _header(file: IO[bytes]) -> dict[str, Any]:
    """That of the array which comes next (NumPy's format, version 1 to 3)."""
    start = file.read(8)
    wide = start[6:7] > b"\x01"
    (length,) = struct.unpack("<I" if wide else "<H", file.read(4 if wide else 2))
    if start[:6] != b"\x93NUMPY" or length > 10_000:
        raise ValueError("no array")
    header: dict[str, Any] = ast.literal_eval(file.read(length).decode("latin-1"))
    return header
