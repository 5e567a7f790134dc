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
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.files import write_text
from usl_lightning.data.images.catalog import data_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""What counts as an image file, in either case."""

_INDEXED = 1000  # smaller folders are scanned faster than their list is checked
_RACY = 2_000_000_000  # ns; a folder changed this shortly before the scan may change again unnoticed
_INDEX_FORMAT = "usl-folder-index-1"


@dataclass(frozen=True)
class FileList:
    """The image files below a folder.

    Attributes:
        root: the folder.
        files: paths relative to it with `/`, sorted by code point.
        sizes: bytes of each.
        folders: every sub-folder scanned (`""` is the folder itself) and its modification time in ns.
        only: the first-level sub-folders that were looked into; None: all.
    """

    root: Path
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    folders: dict[str, int]
    only: tuple[str, ...] | None = None

    def without(self, left_out: set[str]) -> "FileList":
        """The list without some files."""
        kept = [(f, s) for f, s in zip(self.files, self.sizes, strict=True) if f not in left_out]
        return replace(self, files=tuple(f for f, _ in kept), sizes=tuple(s for _, s in kept))

    def class_folders(self) -> list[str]:
        """The first-level sub-folders, sorted by code point."""
        return sorted(folder for folder in self.folders if folder and "/" not in folder)


def fingerprint_of(files: Sequence[str], sizes: Sequence[int]) -> str:
    """`sha256:…` over each path (UTF-8), NUL, size in decimal digits, NUL."""
    parts = [f"{file}\0{size}\0" for file, size in zip(files, sizes, strict=True)]
    return "sha256:" + hashlib.sha256("".join(parts).encode()).hexdigest()


# scanning ------------------------------------------------------------------------------------------------


def scan(root: Path, only: tuple[str, ...] | None = None, *, trust_index: bool = True) -> FileList:
    """List the image files below `root`.

    Hidden files and folders (names that begin with a dot) are left out; links are followed.

    Args:
        root: the folder.
        only: the first-level sub-folders to look into; default: everything.
        trust_index: take the list from the cache folder if it is still true, by the rule above.

    Raises:
        UslError: no such folder, no image, an unreadable folder, a name that is not UTF-8, two names that
            differ only by case (they could not be told apart on other file systems).
    """
    if not root.is_dir():
        raise UslError(f"{root}: no such folder; give the folder of the images with --data.dir")
    index = _index_path(root, only)
    if trust_index and (known := _read_index(index, root, only)) is not None:
        return known
    started = time.time_ns()
    folders: dict[str, int] = {}
    found = sorted(_walk(root, only, folders))
    files, sizes = tuple(file for file, _ in found), tuple(size for _, size in found)
    result = FileList(root, files, sizes, folders, only)
    _check_names(result)
    if len(found) >= _INDEXED:
        _write_index(index, result, started)
    return result


def _walk(root: Path, only: tuple[str, ...] | None, folders: dict[str, int]) -> Iterator[tuple[str, int]]:
    """(path, size) of every image file; fills `folders`."""
    wanted = set(only or ())
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        folder, above = pending.pop()
        where = os.path.join(root, folder)
        try:
            status = os.stat(where)
            identity = (status.st_dev, status.st_ino)
            if identity in above:  # a link to a folder it lies in
                continue
            folders[folder] = status.st_mtime_ns
            with os.scandir(where) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or (wanted and not folder and entry.name not in wanted):
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        pending.append((path, (*above, identity)))
                    elif entry.name.lower().endswith(SUFFIXES):
                        yield path, entry.stat().st_size
        except OSError as error:
            raise UslError(f"{error.filename or where}: cannot be read ({error.strerror})") from error


def _check_names(found: FileList) -> None:
    seen: dict[str, str] = {}
    for file in found.files:
        if file.isascii():
            key = file.lower()
        else:
            try:
                file.encode()
            except UnicodeEncodeError as error:
                raise UslError(f"{found.root}: file name {file!r} is not UTF-8; rename it") from error
            key = unicodedata.normalize("NFC", file).casefold()
        if key in seen:
            raise UslError(
                f"{found.root}: {seen[key]} and {file} differ only by case, so that they are one file on"
                " other file systems; rename one"
            )
        seen[key] = file
    if not found.files:
        raise UslError(f"{found.root}: no image in it; expected files that end in {', '.join(SUFFIXES)}")


# the kept list -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where small things that can be made again are kept: `$USL_CACHE`, else `~/.cache/usl-lightning`."""
    return Path(os.environ.get("USL_CACHE") or "~/.cache/usl-lightning").expanduser()


def _index_path(root: Path, only: tuple[str, ...] | None) -> Path:
    key = json.dumps([os.path.realpath(root), None if only is None else sorted(only)])
    return cache_folder() / "folders" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def drop_index(root: Path, only: tuple[str, ...] | None) -> None:
    """Forget the kept list of a folder."""
    _index_path(root, only).unlink(missing_ok=True)


def _read_index(index: Path, root: Path, only: tuple[str, ...] | None) -> FileList | None:
    """The kept list if there is one and it is still true."""
    try:
        value = json.loads(index.read_text(encoding="utf-8"))
        if value["format"] != _INDEX_FORMAT or len(value["files"]) != len(value["sizes"]):
            return None
        for folder, changed in value["folders"].items():
            if os.stat(os.path.join(root, folder)).st_mtime_ns != changed or changed > value["started"] - _RACY:
                return None
        return FileList(root, tuple(value["files"]), tuple(value["sizes"]), value["folders"], only)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, damaged or outdated: scan


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


def split_folders(name: str, dir: str | None) -> dict[str, Path]:
    """The folder of each split of a set of image files that is there.

    `folder`: `dir` is the image folder. If it has `train` and also `test` or `val`, these are the splits;
    otherwise all of it is `train`. `imagenet`, `imagenet100`: below the data folder, `imagenet`,
    `ImageNet`, `ILSVRC2012` or the data folder itself (for `imagenet100` also `imagenet100`), with `train`
    and `val`. Without a folder `test`, `val` is also called `test`.

    Raises:
        UslError: there is no such folder.
    """
    if name == "folder":
        if dir is None:
            raise UslError("data set folder: which one? give the folder of the images with --data.dir")
        root = Path(dir).expanduser()
        if not root.is_dir():
            raise UslError(f"{root}: no such folder; give the folder of the images with --data.dir")
        splits = _splits_in(root)
        return splits if "train" in splits and "test" in splits else {"train": root}
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


def _splits_in(root: Path) -> dict[str, Path]:
    splits = {name: root / name for name in ("train", "test", "val") if (root / name).is_dir()}
    if "test" not in splits and "val" in splits:
        splits["test"] = splits["val"]
    return splits


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class folders, one a line: the first word of each; empty lines and `#` comments are left out.

    Raises:
        UslError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UslError(f"{path}: class list cannot be read ({error})") from error
    names = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise UslError(f"{path}: no class in it; expected one class folder a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UslError(f"{path}: class {twice} is there twice")
    return tuple(names)


def class_names(name: str, train: Path, class_list: str | None) -> tuple[str, ...] | None:
    """The class folders asked for, in label order; None: all there are.

    Raises:
        UslError: a listed class has no folder, or `imagenet100` lacks its list.
    """
    if class_list is None and name != "imagenet100":
        return None
    there = sorted(e.name for e in os.scandir(train) if e.is_dir() and not e.name.startswith("."))
    if class_list is None:
        if len(there) == 100:
            return None
        raise UslError(f"imagenet100: {train} has {len(there)} classes; name the 100 with --data.class_list FILE")
    wanted = read_class_list(Path(class_list))
    for one in wanted:
        if one not in there:
            raise UslError(f"{class_list}: no folder {one} in {train}{did_you_mean(one, there)}")
    return wanted
