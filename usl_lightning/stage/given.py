"""What a stage is given: files, a data set, a place to write. Told before it starts; imports nothing heavy."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from usl_lightning.base.arrays import DAMAGE, check_records
from usl_lightning.base.errors import UslError
from usl_lightning.base.parameters import needs_of, parameters
from usl_lightning.base.typed import home
from usl_lightning.data.images import array_files, catalog, splits
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.identity import names_a_file

_INDICES = ("data.labels", "data.subset_file", "model.keep_from", "model.labels_from")
"""Parameters that name a label index; others that end in `_from` name a checkpoint."""

_LISTS = ("data.class_list", "data.labels_file")
"""Those that name a text; what is left names arrays."""

_ARRAYS = (b"\x93NUMPY", b"PK")
"""How files of arrays begin: `.npy`, `.npz`."""

_SYSTEMS = ("/proc", "/sys")
"""Folders in which nothing can be made, even by those who may do all."""

_EARLIER = "${"
"""Begins what an earlier stage leaves."""


def check_needs(flat: Mapping[str, Any]) -> None:
    """Refuse a stage that lacks what its method or its data cannot do without.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the keys.
    """
    for group in ("model", "data"):
        for need in needs_of(str(flat.get(f"{group}.class_path"))):
            keys = [f"{group}.{name}" for name in need.split(" or ")]
            if not any(flat.get(key) for key in keys):
                method = str(flat[f"{group}.class_path"]).rpartition(".")[2]
                raise UslError(f"{' or '.join(keys)}: must be given; {method} does not do without")


def check_files(flat: Mapping[str, Any]) -> None:
    """Refuse files that are of another kind than the parameter that names them; those that are not there yet are left.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the file.
    """
    for key, value in flat.items():
        if names_a_file(key) and isinstance(value, str) and value and _EARLIER not in value:
            path = os.path.expanduser(value)
            if os.path.lexists(path):
                _check_file(key, path, flat)


def _check_file(key: str, path: str, flat: Mapping[str, Any]) -> None:
    if not os.path.isfile(path):
        raise UslError(f"{key}: {path}: is no file")
    if key in _INDICES:
        _check_index(key, LabelIndex.read(path), flat)
    elif key.endswith("_from"):
        _check_checkpoint(path)
    elif key not in _LISTS and not _begin(path).startswith(_ARRAYS):
        raise UslError(f"{key}: {path}: expected a .npy or .npz file of arrays")


def _check_index(key: str, index: LabelIndex, flat: Mapping[str, Any]) -> None:
    name, budget = flat.get("data.dataset"), flat.get("model.budget")
    names = {index.dataset.name, catalog.canonical_name(str(name))} if index.dataset and name is not None else set()
    if len(names) == 2 and names <= catalog.ARRAY_SETS.keys():  # folders may be one by their images
        raise UslError(f"{key}: {index.path}: chosen from {index.dataset}, but the data set is {name}")
    if key == "model.keep_from" and isinstance(budget, int) and index.chosen > budget:
        raise UslError(
            f"{key}: {index.path} holds {index.chosen} images, the budget is {budget}; the budget counts them too: "
            f"give --model.budget {index.chosen} or more"
        )


@cache
def _check_checkpoint(path: str) -> None:
    try:
        check_records(path)
    except DAMAGE as error:
        raise UslError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); it is damaged or of another program"
        ) from error


def _begin(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(6)
    except OSError as error:
        raise UslError(f"{path}: cannot be read ({error.strerror})") from error


def check_data(flat: Mapping[str, Any]) -> None:
    """Refuse a data set, or a split of it, that is not there, and what it has no use for.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: says where it was looked for, or names the key.
    """
    if flat.get("data.dataset") is None:
        return
    name, folder = catalog.canonical_name(str(flat["data.dataset"])), flat.get("data.dir")
    folder, split = None if folder is None else str(folder), str(flat.get("data.split") or "train")
    catalog.check_use(name, {key.removeprefix("data."): value for key, value in flat.items()})
    if name in catalog.FOLDER_SETS:
        there = set(splits.split_folders(name, folder))
    elif name in catalog.FILE_SETS:
        there = set(array_files.locate(folder))
    elif flat.get("data.download") is True or not catalog.ARRAY_SETS[name].files[split.partition("+")[0]]:
        return
    else:
        catalog.locate(name, split, folder, image_size=flat.get("data.image_size"))
        return
    if split not in there:
        has = ", ".join(sorted(there))
        raise UslError(f"data.split: no split '{split}' in {catalog.data_folder(folder)}; it has {has}")


def check_cache(flat: Mapping[str, Any]) -> None:
    """Refuse folders for what is computed once, of those that are named, which cannot be made or written.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the key and the folder.
    """
    folders = {key: flat.get(key) for key in ("data.cache", "model.cache")}
    if folders["model.cache"] is None and "cache" in parameters(str(flat.get("model.class_path"))):
        folders["USL_CACHE"] = os.environ.get("USL_CACHE")
    for key, folder in folders.items():
        if isinstance(folder, str) and folder and (problem := unwritable(home(folder))):
            raise UslError(f"{key}: {problem}; give another folder")


def unwritable(folder: Path) -> str | None:
    """What keeps a folder from being made, or files in it; None: nothing that can be seen. Nothing is written."""
    place = next((each for each in (folder, *folder.absolute().parents) if os.path.lexists(each)), folder)
    if not os.path.isdir(place):
        return f"{place}: is there already, and no folder"
    if os.path.realpath(place).startswith(_SYSTEMS):
        return f"{place}: is the system's own"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place}: cannot be written"
