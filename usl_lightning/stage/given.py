"""What a stage names is there, on this machine: files, data sets, published weights, places to write."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from usl_lightning.base.arrays import DAMAGE, check_records
from usl_lightning.base.defaults import defaults
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import once, sha256_of
from usl_lightning.base.parameters import parameters, up_to_images_of
from usl_lightning.base.typed import home
from usl_lightning.data.images import array_files, catalog, splits
from usl_lightning.data.images.counts import header_of, most_images, rows_of
from usl_lightning.data.images.folder_labels import LabelledFiles, list_folder
from usl_lightning.data.images.folders import cache_folder, fingerprint_of
from usl_lightning.data.images.walk import read_file
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import DatasetId
from usl_lightning.labels.tables import label_cells
from usl_lightning.models.names import TRAINED_FOR, named_networks
from usl_lightning.models.published import check_weights
from usl_lightning.stage.identity import names_a_file
from usl_lightning.stage.published_lists import check_published_list
from usl_lightning.stage.taken import check_network_in

_INDICES = ("data.labels", "data.subset_file", "model.keep_from", "model.labels_from")
"""Parameters that name a label index; others that end in `_from` name a checkpoint."""

_LISTS: Mapping[str, Callable[[Path], object]] = {
    "data.class_list": splits.read_class_list,
    "data.labels_file": label_cells,
}
"""Those that name a text, and what reads it; what is left names arrays."""

_ARRAYS = (b"\x93NUMPY", b"PK")
"""How files of arrays begin: `.npy`, `.npz`."""

_SYSTEMS = ("/proc", "/sys")
"""Folders in which nothing can be made, even by those who may do all."""

_EARLIER = "${"
"""Begins what an earlier stage leaves."""

_most_images = cache(most_images)  # the stages of a table are many


def check_given(flat: Mapping[str, Any]) -> None:
    """Refuse a stage of which something is not there.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the key.
    """
    check_files(flat)
    check_data(flat)
    check_cache(flat)
    check_published(flat)


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
        check_published_list(key, Path(path), flat)
        _check_index(key, LabelIndex.read(path), flat)
    elif key.endswith("_from"):
        _check_checkpoint(path)
        check_network_in(key, path, flat)
    elif key in _LISTS:
        _check_list(key, path)
    elif not _begin(path).startswith(_ARRAYS):
        raise UslError(f"{key}: {path}: expected a .npy or .npz file of arrays")
    elif key == "model.features":
        _check_features(path)


def _check_features(path: str) -> None:
    try:
        rows_of(Path(path), "features.npy")
    except KeyError as error:
        raise UslError(f"model.features: {path}: holds no array named 'features'") from error
    except (IndexError, *DAMAGE):
        return  # its reader tells


def _count(flat: Mapping[str, Any]) -> int | None:
    """How many images a stage has at most, as far as that is known."""
    subset = flat.get("data.subset_file")
    if subset is not None:
        return len(LabelIndex.read(str(subset)).indices) if os.path.isfile(str(subset)) else None
    directory, split = flat.get("data.dir"), str(flat.get("data.split") or "train")
    listed = {name: flat.get(f"data.{name}") for name in ("class_list", "labels_file")}
    return _most_images(str(flat["data.dataset"]), None if directory is None else str(directory), split, **listed)


def _check_index(key: str, index: LabelIndex, flat: Mapping[str, Any]) -> None:
    name, budget = flat.get("data.dataset"), flat.get("model.budget")
    names = {index.dataset.name, catalog.canonical_name(str(name))} if index.dataset and name is not None else set()
    if len(names) == 2 and names <= catalog.ARRAY_SETS.keys():  # folders may be one by their images
        raise UslError(f"{key}: {index.path}: chosen from {index.dataset}, but the data set is {name}")
    splits_of = str(flat.get("data.split") or "train"), index.dataset.split if index.dataset else ""
    if names and names <= catalog.IMAGES.keys() and not f"{splits_of[0]}+".startswith(f"{splits_of[1]}+"):
        raise UslError(
            f"{key}: {index.path}: chosen from {index.dataset}, but data.split is {splits_of[0]}; expected the same"
        )
    if key == "data.labels" and not index.plain:
        (index.answered if flat.get("data.unanswered") == "leave_out" else index).for_training()
    if key == "model.keep_from" and isinstance(budget, int) and index.chosen > budget:
        raise UslError(
            f"{key}: {index.path} holds {index.chosen} images, the budget is {budget}; the budget counts them too: "
            f"give --model.budget {index.chosen} or more"
        )


@cache
def _check_list(key: str, path: str) -> None:
    _LISTS[key](Path(path))


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
        places = splits.split_folders(name, folder)
        there = set(places)
        _check_classes(name, places["train"], flat)
        if split in there:
            _check_folder(name, split, flat)
    elif name in catalog.FILE_SETS:
        files = array_files.locate(folder)
        there = set(files)
        if split in files:
            _check_images(*files[split])
    elif flat.get("data.download") is True or not catalog.ARRAY_SETS[name].files[split.partition("+")[0]]:
        return
    else:
        catalog.locate(name, split, folder, image_size=flat.get("data.image_size"))
        return
    if split not in there:
        has = ", ".join(sorted(there))
        raise UslError(f"data.split: no split '{split}' in {catalog.data_folder(folder)}; it has {has}")


def _check_images(path: Path, prefix: str) -> None:
    try:
        header = header_of(path, f"{prefix}images.npy")
    except (IndexError, *DAMAGE):
        return  # its reader tells
    if str(header.get("descr")).lstrip("|<>=") not in ("u1", "uint8") or len(header.get("shape", ())) not in (3, 4):
        raise UslError(
            f"data.dir: {path}: the images are {header.get('descr')} {list(header.get('shape', ()))}, expected uint8 "
            "[n, h, w] or [n, h, w, c]"
        )


def _check_classes(name: str, train: Path, flat: Mapping[str, Any]) -> None:
    """Of image folders: classes are named in one way, and those that a list names have folders."""
    classes, listed, labels = (flat.get(f"data.{each}") for each in ("classes", "class_list", "labels_file"))
    if classes is not None and (listed or labels):
        raise UslError(
            "data.classes is for images without labels; leave it out, or data.class_list and data.labels_file"
        )
    if classes is None and not labels:
        splits.class_names(name, train, None if listed is None else str(listed))


def _check_folder(name: str, split: str, flat: Mapping[str, Any]) -> None:
    """Of image folders: what is listed is what its stage takes, as far as no image has to be decoded to tell."""
    given = [flat.get(f"data.{each}") for each in ("dir", "labels_file", "class_list")]
    folder, table, listed = (None if text is None else os.path.expanduser(str(text)) for text in given)
    if any(text is not None and not os.path.isfile(text) for text in (table, listed)):
        return  # a file that is not there is told where it is named
    classes = flat.get("data.classes")
    named = None if classes is None else tuple(map(str, classes))
    skip, sized = flat.get("data.on_error") == "skip", flat.get("data.image_size") is not None
    question = (name, split, folder, table, listed, named, skip, sized)
    found = once(("given", *question), lambda: _look_at_folder(*question))  # the stages of a chain are of one folder
    if skip or flat.get("data.subset_file") is not None:
        return  # which images there are is told by reading them, or that file
    files = found.listing.files
    places = [found.listing.root / file for file in files]
    dataset = DatasetId(name, split, len(files), fingerprint_of(files, found.listing.sizes))
    for key in ("data.labels", "model.keep_from"):
        path = os.path.expanduser(str(flat.get(key)))
        if os.path.isfile(path):
            LabelIndex.read(path).placed(
                dataset, found.classes, files, lambda chosen: (sha256_of(read_file(places[i])) for i in chosen)
            )


def _look_at_folder(
    name: str,
    split: str,
    folder: str | None,
    table: str | None,
    listed: str | None,
    classes: tuple[str, ...] | None,
    skip: bool,
    sized: bool,
) -> LabelledFiles:
    from usl_lightning.data.images.sizes import check_one_size  # NumPy and Pillow, which most chains need not yet
    from usl_lightning.data.images.unreadable import check_readable

    found = list_folder(
        name, split, dir=folder, labels_file=table, class_list=listed, classes=classes,
        readable=lambda listing: (listing, {}) if skip else check_readable(listing, "fail"),
    )  # fmt: skip
    if not sized:
        check_one_size(found.listing, skip=skip)
    return found


def check_counts(flat: Mapping[str, Any]) -> None:
    """Refuse a choice of more images than there are, and clusters and their like above them.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: tells how many there are.
    """
    method, budget = str(flat.get("model.class_path")), flat.get("model.budget")
    given = {name: flat.get(f"model.{name}", defaults(method).get(name)) for name in up_to_images_of(method)}
    if flat.get("data.dataset") is None or not (given or isinstance(budget, int)):
        return
    count = _count(flat)
    if count is None:
        return
    if isinstance(budget, int) and budget > count:
        raise UslError(f"model.budget: {budget} images cannot be picked from {count}")
    for name, value in given.items():
        numbers = value if isinstance(value, list) else [value]
        most = max((number for number in numbers if isinstance(number, int)), default=0)
        if most > count:
            raise UslError(f"model.{name}: {most} for {count} images; use at most {count}")


def check_published(flat: Mapping[str, Any]) -> None:
    """Refuse networks whose published weights are wanted, are not on this machine and cannot be fetched.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the network and says where to get its weights.
    """
    gives_features = "features" in parameters(str(flat.get("model.class_path")))  # published ones unless told otherwise
    wanted = {"model.backbone": flat.get("model.pretrained", gives_features), "model.teacher": True}
    for key, name in named_networks(flat):
        if wanted[key] is True and TRAINED_FOR not in name:
            check_weights(name)


def check_cache(flat: Mapping[str, Any]) -> None:
    """Refuse folders for what is computed once that cannot be made or written.

    What nobody named may be there already, kept by another user: that is taken.

    Args:
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the key and the folder.
    """
    folders = {key: flat.get(key) for key in ("data.cache", "model.cache")}
    if folders["model.cache"] is None and "cache" in parameters(str(flat.get("model.class_path"))):
        folders["USL_CACHE"] = os.environ.get("USL_CACHE")
        kept = any(cache_folder().glob("*.npz"))
        if not folders["USL_CACHE"] and flat.get("model.features") is None and not kept:
            folders["model.cache"] = str(cache_folder())
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
