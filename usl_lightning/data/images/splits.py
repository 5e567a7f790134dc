"""Folders of image files: which of them are splits, and which are classes.

Standard library only, because `usl run` asks before torch is imported.
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from usl_lightning.base.atomic import read_file
from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.base.files import not_a_folder, once, read_once
from usl_lightning.data.images import folders, shards
from usl_lightning.data.images.catalog import data_folder
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.shards import split_called
from usl_lightning.data.images.walk import is_class_folder, is_hidden, is_image
from usl_lightning.labels.names import is_not_sure, look, may_be_none

log = logging.getLogger("usl_lightning")


def split_folders(name: str, dir: str | None) -> Mapping[str, Path]:
    """The folder of each split of a set of image files that is there; looked for once a stage.

    Split folders are called `train` and `test`, `val`, `valid` or `validation` (or `training`, `testing`), in any case;
    without one for `test`, `val` is also called `test`.

    `folder`: `dir` is the image folder. If it, or the only folder in it, has one for `train` and one for `test` or
    `val`, these are the splits; a folder for `train` with nothing beside it is one too; otherwise all of `dir` is
    `train`. `imagenet`, `imagenet100`: below the data folder, `imagenet`, `ImageNet`, `ILSVRC2012` or the data folder
    itself (for `imagenet100` also `imagenet100`).

    Raises:
        UslError: there is no such folder, or two for one split.
    """
    return once(("splits", name, dir), lambda: _split_folders(name, dir))


def _split_folders(name: str, dir: str | None) -> dict[str, Path]:
    if name == "folder":
        if dir is None:
            raise UslError("data set folder: which one? give the folder of the images with --data.dir")
        root = Path(os.path.expanduser(dir))
        if not shards.is_place(root):
            raise UslError(f"{root}: {not_a_folder(root)}; give the folder of the images with --data.dir")
        return _splits_of_folder(root)
    places = [data_folder(dir) / sub for sub in ("imagenet", "ImageNet", "ILSVRC2012", "")]
    if name == "imagenet100":
        places = [data_folder(dir) / "imagenet100", *places]
    for place in places:
        splits = _splits_in(place)
        if "train" in splits:
            return splits
    raise UslError(
        f"data set {name} was not found: looked in {', '.join(map(str, places))} for train/<class>/*.JPEG"
        " (and val/<class>/*.JPEG); give --data.dir FOLDER or USL_DATA"
    )


def _splits_of_folder(root: Path) -> dict[str, Path]:
    inner = only_folder(root)
    for place in (root, inner):
        splits = _splits_in(place)
        if "train" in splits and "test" in splits:
            _tell_what_is_beside(place, frozenset(folder.name for folder in splits.values()))
            return splits
    for place in (inner, *inner.parents):
        if place == root:
            break
        if split_called(place.name) == "train":
            return {"train": place}
    return {"train": root}


@functools.cache  # told once
def _tell_what_is_beside(root: Path, splits: frozenset[str]) -> None:
    """Of images, and folders of images, beside splits, which are part of none: how many, and which is first."""
    if (place := shards.find(root)) is not None:
        others = shards.beside_splits(place) if shards.split_words(place) else []
    else:
        others = sorted(e.name for e in _listed(root) if not split_called(e.name) and _holds_images(e))
    if others:
        first, count, of = printable(others[0], 80), len(others), ", ".join(sorted(splits))
        log.warning("%s: passed over beside %s: %s, of %d images and folders of images", root, of, first, count)


def _holds_images(entry: "os.DirEntry[str]", depth: int = 2) -> bool:
    """Whether it is called like an image, or is a folder that has one, if not deeper than that."""
    if not is_class_folder(entry):
        return is_image(entry.name)
    return depth > 0 and any(_holds_images(inner, depth - 1) for inner in _listed(Path(entry.path)))


def _splits_in(root: Path) -> dict[str, Path]:
    """Split -> its folder, in the order of training and testing."""
    found: dict[str, Path] = {}
    for name in filter(split_called, folders_in(root)):
        split = split_called(name)
        if split in found:
            raise UslError(f"{root}: {found[split].name} and {name} are both the split '{split}'; rename one")
        found[split] = root / name
    if "test" not in found and "val" in found:
        found["test"] = found["val"]
    return {split: found[split] for split in ("train", "test", "val") if split in found}


def folders_in(root: Path) -> list[str]:
    """The names of the folders in a folder, sorted; of shards, those that their names mean, or that are in them."""
    place = shards.find(root)
    if place is None:
        return sorted(entry.name for entry in _listed(root) if is_class_folder(entry))
    return list(shards.split_words(place)) or folders.scan(root).class_folders()


def are_splits(names: Collection[str]) -> bool:
    """Whether folders of these names, among others, are splits: one to train and one to measure on."""
    found = {*map(split_called, names)}
    return "train" in found and bool(found & {"test", "val"})


def check_no_splits(train: Path, listing: FileList) -> None:
    """Refuse class folders that are splits, or hold them.

    Args:
        train: the folder that is trained on.
        listing: what is in it.

    Raises:
        UslError: names them, and what to do.
    """
    inside = {folder: listing.folders_in(folder) for folder in listing.class_folders()}
    if len(inside) == 1 and len(names := next(iter(inside.values()))) > 1:
        (folder,) = inside
        log.warning(
            "%s: %s is its only class, with all images of %s; if those are the classes, give --data.dir %s",
            train, folder, printable(", ".join(sorted(names)), 200), train / folder,
        )  # fmt: skip
    for folder, names in inside.items():
        if split_called(folder) and names and ({*inside} & {*names} or all(map(split_called, inside))):
            raise UslError(
                f"{train}: {folder} is no class: it holds folders as a split does ({', '.join(sorted(names))});"
                " expected train and test, which hold those of the classes, or one of them as the folder of the images"
            )
        if are_splits(names):
            raise UslError(
                f"{train}: {folder} is no class: it has the splits {', '.join(sorted(names))}; give the folder that"
                f" holds the splits with --data.dir ({train / folder})"
            )
        others = [other for other in inside if other != folder and inside[other] == names]
        called = re.search(r"(?<![a-z])tr(ai)?n", look(folder))  # train_set and test_set, train and dev
        if called and len(names) > 1 and others:
            raise UslError(
                f"{train}: {' and '.join((folder, *others))} hold folders of the same names and are no classes; call"
                " them train and test, or give one of them as the folder of the images"
            )
    names = next(iter(inside.values()), set())
    if len(inside) > 1 and len(names) > 1 and all(names == others for others in inside.values()):
        log.warning(
            "%s: its classes are %s, and each holds folders of the same names (%s); if those are the classes, call the"
            " others train and test, or give one of them with --data.dir",
            train, printable(", ".join(sorted(inside)), 200), printable(", ".join(sorted(names)), 200),
        )  # fmt: skip


def check_classes(train: Path, names: Collection[str]) -> None:
    """Refuse class folders that may hold what has no label: programs write such a one beside those of the classes.

    Args:
        train: the folder that is trained on.
        names: of the class folders in it, none of which anybody has named.

    Raises:
        UslError: names one, and what to do.
    """
    doubtful = [name for name in names if may_be_none(name) and not is_not_sure(name)]
    if doubtful:
        raise UslError(
            f"{train / doubtful[0]}: may hold images without a label, or be a class; put them beside the class"
            " folders, where images have no label, or name the classes with --data.class_list FILE"
        )


def only_folder(folder: Path) -> Path:
    """The folder, or the only one in it as long as there is nothing else that counts."""
    if (place := shards.find(folder)) is not None:
        return folder if shards.split_words(place) or folders.labels_in_shards(folder) else _only_in_shards(folder)
    passed = set[str]()
    while True:
        passed.add(os.path.realpath(folder))
        below: list[str] = []
        for entry in _listed(folder):
            if is_class_folder(entry):
                below.append(entry.name)
            if len(below) > 1 or is_image(entry.name):
                return folder
        if not below or os.path.realpath(folder / below[0]) in passed:  # a link may lead back
            return folder
        folder = folder / below[0]


def _only_in_shards(folder: Path) -> Path:
    found = folders.scan(folder).files  # in order, so that what the first and the last have in common, all have
    return folder / os.path.commonpath([os.path.dirname(file) for file in (found[0], found[-1])])


def _listed(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder that are not hidden; none if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if not is_hidden(entry.name))


def read_class_list(path: Path, known: Collection[str] = ()) -> tuple[str, ...]:
    """Class names, one a line, in composed form; empty lines and `#` comments are left out. Read once a stage.

    A line may go on after the name, as ImageNet's lists do (`n02119789 kit fox`): its first word is the name if that
    is a WordNet id, or if it is known and the whole line is not.

    Args:
        path: the list, UTF-8 with or without a byte order mark.
        known: names that there are.

    Raises:
        UslError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        lines = read_once("class list", path, lambda: read_file(path).decode("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UslError(f"{path}: class list cannot be read ({error})") from error
    texts = [composed(line.strip()) for line in lines]
    names = [_named_in(text, known) for text in texts if text in known or text[:1] not in ("", "#")]
    if not names:
        raise UslError(f"{path}: no class in it; expected one class folder a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UslError(f"{path}: class {printable(twice, 80)} is there twice")
    return tuple(names)


def _named_in(line: str, known: Collection[str]) -> str:
    first = line.split()[0]
    return first if line not in known and (first in known or re.fullmatch(r"n\d{8}", first)) else line


def class_names(name: str, train: Path, class_list: str | None) -> tuple[str, ...] | None:
    """The class folders asked for, in label order and composed form; None: all there are, or folders are no classes.

    Raises:
        UslError: a listed class has no folder, or `imagenet100` lacks its list.
    """
    if (class_list is None and name != "imagenet100") or folders.labels_in_shards(train):
        return None
    there = sorted(map(composed, folders_in(train)))
    if class_list is None:
        if len(there) == 100:
            return None
        raise UslError(f"imagenet100: {train} has {len(there)} classes; name the 100 with --data.class_list FILE")
    wanted = read_class_list(Path(class_list), there)
    for one in wanted:
        if one not in there:
            raise UslError(f"{class_list}: no folder {printable(one, 80)} in {train}{did_you_mean(one, there)}")
    return wanted
