"""Folders of image files: which files there are, and their fingerprint.

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
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import changed, not_a_folder, once, read_json, write_text
from usl_lightning.data.images.walk import SUFFIXES, check_path
from usl_lightning.data.images.walk import walk as _walk

log = logging.getLogger("usl_lightning")

_INDEXED = 1000  # smaller folders are scanned faster than their list is checked
_RACY = 2_000_000_000  # ns; a folder changed this shortly before the scan may change again unnoticed
_INDEX_FORMAT = "usl-folder-index-4"


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
        raise UslError(f"{root}: {not_a_folder(root)}; give the folder of the images with --data.dir")
    index = _index_path(root, only)
    if trust_index and (known := _read_index(index, root, only)) is not None:
        return known
    started = time.time_ns()
    folders: dict[str, int] = {}
    odd: list[tuple[str, str]] = []
    unread: list[str] = []
    try:
        found = sorted(_walk(root, only, folders, odd, unread), key=lambda one: composed(one[0]))
    except OSError as error:
        raise UslError(f"{root}: cannot be read ({error.strerror})") from error
    files, sizes = tuple(file for file, _ in found), tuple(size for _, size in found)
    result = FileList(root, files, sizes, folders, only, tuple(sorted(odd)))
    if unread and found:
        _tell_of_unread(root, min(unread), len(unread))
    _check_names(result)
    if len(found) >= _INDEXED and not odd:  # what is wrong with those may be mended elsewhere
        _write_index(index, result, started)
    return result


@cache  # told once
def _tell_of_unread(root: Path, first: str, count: int) -> None:
    log.warning(
        "%s: %s is left out, of %d pictures of kinds that are not read; convert them, to PNG or JPEG, to have them",
        root, printable(first, 80), count,
    )  # fmt: skip


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
    """Forget the kept list of a folder, if it is this user's to forget."""
    with contextlib.suppress(OSError):
        _index_path(root, only).unlink()


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
