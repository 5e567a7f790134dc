"""Folders of image files: which files there are, which split and class each belongs to, their fingerprint.

Standard library only, because `usl run` asks before torch is imported. Decoding is in `decode.py`.

The list of a big folder is kept in a small file under the cache folder (`$USL_CACHE`, else
`~/.cache/usl-lightning`). The rule by which it is trusted: every sub-folder has the modification time it
had, and that time was at least two seconds old when the folder was scanned. That finds files added, removed
and renamed. A file rewritten in place keeps its folder's time; it is found when it is read with another
size than listed, and by `usl run`, which always scans afresh.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from usl_lightning.base.atomic import read_file
from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.base.files import changed, once, read_json, read_once, write_text
from usl_lightning.data.images.catalog import data_folder
from usl_lightning.data.images.walk import SUFFIXES, check_path, is_class_folder, is_image
from usl_lightning.data.images.walk import walk as _walk

_INDEXED = 1000  # smaller folders are scanned faster than their list is checked
_RACY = 2_000_000_000  # ns; a folder changed this shortly before the scan may change again unnoticed
_INDEX_FORMAT = "usl-folder-index-2"


@dataclass(frozen=True)
class FileList:
    """The image files below a folder.

    Attributes:
        root: the folder.
        files: paths relative to it with `/`, sorted by the code points of their composed form.
        sizes: bytes of each.
        folders: every sub-folder scanned (`""` is the folder itself) and its modification time in ns.
        only: the first-level sub-folders that were looked into; None: all.
        odd: what is called like an image and is no file that can be read, and folders that cannot be read: path and
            problem.
    """

    root: Path
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    folders: dict[str, int]
    only: tuple[str, ...] | None = None
    odd: tuple[tuple[str, str], ...] = ()

    def without(self, left_out: set[str]) -> "FileList":
        """The list without some files."""
        kept = [(f, s) for f, s in zip(self.files, self.sizes, strict=True) if f not in left_out]
        return replace(self, files=tuple(f for f, _ in kept), sizes=tuple(s for _, s in kept))

    def class_folders(self) -> list[str]:
        """The first-level sub-folders, sorted by code point."""
        return sorted(folder for folder in self.folders if folder and "/" not in folder)

    def folders_in(self, folder: str) -> set[str]:
        """The names of the sub-folders of a first-level one."""
        return {path.split("/")[1] for path in self.folders if path.startswith(f"{folder}/")}


def fingerprint_of(files: Sequence[str], sizes: Sequence[int]) -> str:
    """`sha256:…` over each path (composed, UTF-8), NUL, size in decimal digits, NUL."""
    parts = [f"{composed(file)}\0{size}\0" for file, size in zip(files, sizes, strict=True)]
    return "sha256:" + hashlib.sha256("".join(parts).encode()).hexdigest()


# scanning ------------------------------------------------------------------------------------------------


def scan(root: Path, only: tuple[str, ...] | None = None, *, trust_index: bool = True) -> FileList:
    """List the image files below `root`; once a stage.

    Hidden files and folders (names that begin with a dot) are left out; links are followed, see `walk`.

    Args:
        root: the folder.
        only: the first-level sub-folders to look into, in composed form; default: everything.
        trust_index: take the list from the cache folder if it is still true, by the rule above.

    Raises:
        UslError: no such folder, one that cannot be read, no image, a name that a label index cannot hold, two names
            that differ only by case or by how accents are written (elsewhere they are one file), or other files than
            those that this stage has found before.
    """

    def current(known: FileList) -> bool:
        """Still those files; the folder may have got others, such as that of the run."""
        if _unchanged(root, known.folders):
            return True
        found = _scan(root, only, trust_index=False)
        if (found.files, found.sizes) != (known.files, known.sizes):
            raise changed(root)
        return True

    return once(("folder", os.path.abspath(root), only), lambda: _scan(root, only, trust_index), current)


def _scan(root: Path, only: tuple[str, ...] | None, trust_index: bool) -> FileList:
    if not os.path.isdir(root):
        raise UslError(f"{root}: no such folder; give the folder of the images with --data.dir")
    index = _index_path(root, only)
    if trust_index and (known := _read_index(index, root, only)) is not None:
        return known
    started = time.time_ns()
    folders: dict[str, int] = {}
    odd: list[tuple[str, str]] = []
    try:
        found = sorted(_walk(root, only, folders, odd), key=lambda one: composed(one[0]))
    except OSError as error:
        raise UslError(f"{root}: cannot be read ({error.strerror})") from error
    files, sizes = tuple(file for file, _ in found), tuple(size for _, size in found)
    result = FileList(root, files, sizes, folders, only, tuple(sorted(odd)))
    _check_names(result)
    if len(found) >= _INDEXED and not odd:  # what is wrong with those may be mended elsewhere
        _write_index(index, result, started)
    return result


def _check_names(found: FileList) -> None:
    seen: dict[str, str] = {}
    named = (*found.files, *(file for file, _ in found.odd))
    for path in (*named, *found.folders):
        try:
            check_path(path)
        except UslError as error:
            raise UslError(f"{found.root}: {error}") from error
    for file in named:
        key = file.lower() if file.isascii() else composed(file).casefold()
        if key in seen:
            what = "case" if composed(seen[key]) != composed(file) else "how their accents are written"
            raise UslError(
                f"{found.root}: {seen[key]} and {file} differ only by {what}, so that they are one file on"
                " other file systems; rename one"
            )
        seen[key] = file
    if not found.files:
        first = "".join(f"; {file}: {problem}" for file, problem in found.odd[:1])
        raise UslError(f"{found.root}: no image in it; expected files that end in {', '.join(SUFFIXES)}{first}")


# the kept list -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where small things that can be made again are kept: `$USL_CACHE`, else `~/.cache/usl-lightning`."""
    return Path(os.path.expanduser(os.environ.get("USL_CACHE") or "~/.cache/usl-lightning"))


def _index_path(root: Path, only: tuple[str, ...] | None) -> Path:
    key = json.dumps([os.path.realpath(root), None if only is None else sorted(only)])
    return cache_folder() / "folders" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def drop_index(root: Path, only: tuple[str, ...] | None) -> None:
    """Forget the kept list of a folder."""
    _index_path(root, only).unlink(missing_ok=True)


def _read_index(index: Path, root: Path, only: tuple[str, ...] | None) -> FileList | None:
    """The kept list if there is one and it is still true."""
    try:
        value = read_json(index, "it is made again")
        if value["format"] != _INDEX_FORMAT or len(value["files"]) != len(value["sizes"]):
            return None
        found = FileList(root, tuple(value["files"]), tuple(value["sizes"]), value["folders"], only)
        return found if is_true(found, value["started"]) else None
    except (UslError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, damaged or outdated: scan


def is_true(found: FileList, started: int) -> bool:
    """Whether a list is to be trusted still, by the rule above.

    Args:
        found: the list.
        started: when its scan began, in ns.
    """
    try:
        return all(
            time <= started - _RACY and os.stat(os.path.join(found.root, folder)).st_mtime_ns == time
            for folder, time in found.folders.items()
        )
    except OSError:
        return False


def _unchanged(root: Path, folders: Mapping[str, int]) -> bool:
    """Whether all of these folders are there and have the modification time they had."""
    try:
        return all(os.stat(os.path.join(root, folder)).st_mtime_ns == time for folder, time in folders.items())
    except OSError:
        return False


def _write_index(index: Path, found: FileList, started: int) -> None:
    value = {
        "format": _INDEX_FORMAT,
        "root": str(found.root),
        "started": started,
        "folders": found.folders,
        "files": found.files,
        "sizes": found.sizes,
    }
    with contextlib.suppress(UslError, OSError):  # no place to keep it: the next start scans again
        write_text(index, json.dumps(value))


# splits and classes --------------------------------------------------------------------------------------


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
        if not os.path.isdir(root):
            raise UslError(f"{root}: no such folder; give the folder of the images with --data.dir")
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


_SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip


def _splits_of_folder(root: Path) -> dict[str, Path]:
    inner = only_folder(root)
    for place in (root, inner):
        splits = _splits_in(place)
        if "train" in splits and "test" in splits:
            return splits
    for place in (inner, *inner.parents):
        if place == root:
            break
        if _SPLITS.get(place.name.lower()) == "train":
            return {"train": place}
    return {"train": root}


def _splits_in(root: Path) -> dict[str, Path]:
    """Split -> its folder, in the order of training and testing."""
    found: dict[str, Path] = {}
    for name in sorted(e.name for e in _listed(root) if e.name.lower() in _SPLITS and is_class_folder(e)):
        split = _SPLITS[name.lower()]
        if split in found:
            raise UslError(f"{root}: {found[split].name} and {name} are both the split '{split}'; rename one")
        found[split] = root / name
    if "test" not in found and "val" in found:
        found["test"] = found["val"]
    return {split: found[split] for split in ("train", "test", "val") if split in found}


def are_splits(names: Collection[str]) -> bool:
    """Whether folders of these names, among others, are splits: one to train and one to measure on."""
    found = {_SPLITS.get(name.lower()) for name in names}
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
    for folder, names in inside.items():
        if are_splits(names):
            raise UslError(
                f"{train}: {folder} is no class: it has the splits {', '.join(sorted(names))}; give the folder that"
                f" holds the splits with --data.dir ({train / folder})"
            )
        others = [other for other in inside if other != folder and inside[other] == names]
        if folder.lower().startswith("train") and len(names) > 1 and others:  # train_set and test_set, train and dev
            raise UslError(
                f"{train}: {' and '.join((folder, *others))} hold folders of the same names and are no classes; call"
                " them train and test, or give one of them as the folder of the images"
            )


def only_folder(folder: Path) -> Path:
    """The folder, or the only one in it as long as there is nothing else that counts."""
    passed = set[str]()
    while True:
        passed.add(os.path.realpath(folder))
        below: list[str] = []
        for entry in _listed(folder):
            if is_class_folder(entry) and entry.name != "__MACOSX":
                below.append(entry.name)
            if len(below) > 1 or is_image(entry.name):
                return folder
        if not below or os.path.realpath(folder / below[0]) in passed:  # a link may lead back
            return folder
        folder = folder / below[0]


def _listed(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder that are not hidden; none if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


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
    names = [_named_in(text, known) for text in texts if text and not text.startswith("#")]
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
    """The class folders asked for, in label order and composed form; None: all there are.

    Raises:
        UslError: a listed class has no folder, or `imagenet100` lacks its list.
    """
    if class_list is None and name != "imagenet100":
        return None
    there = sorted(composed(entry.name) for entry in _listed(train) if is_class_folder(entry))
    if class_list is None:
        if len(there) == 100:
            return None
        raise UslError(f"imagenet100: {train} has {len(there)} classes; name the 100 with --data.class_list FILE")
    wanted = read_class_list(Path(class_list), there)
    for one in wanted:
        if one not in there:
            raise UslError(f"{class_list}: no folder {printable(one, 80)} in {train}{did_you_mean(one, there)}")
    return wanted
