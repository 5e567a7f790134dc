"""Walking a folder of image files, and reading them: nothing but a regular file is ever opened.

Standard library only. A named pipe would wait for ever, a device may do anything, a maze of links has no end: what an
entry is, is asked before it is opened, and every folder is visited once, whatever links lead to it.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif")
"""What counts as an image file, in either case."""

UNREAD = (
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".psd",
    ".svg",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".dng",
    ".orf",
    ".rw2",
    ".raf",
)
"""Pictures of phones, cameras and programs that are not read: whoever has some hears that they are left out."""

LARGEST = 2 << 30
"""Bytes of a file that is still read."""

OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that macOS, network disks, Windows and Linux make beside what is ours; some have pictures in them."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableImageError(UslError):
    """An image file that cannot be read or decoded, or is of a kind that is refused."""


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether people never see an entry of this name, or it is a folder that a system keeps for itself."""
    return name.startswith(".") or name in OF_SYSTEMS


def is_class_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder that may hold images: not hidden, and not called like an image."""
    try:
        return entry.is_dir() and not is_hidden(entry.name) and not is_image(entry.name)
    except OSError:  # a link to itself
        return False


def walk(
    root: Path,
    only: tuple[str, ...] | None,
    folders: dict[str, int],
    odd: list[tuple[str, str]],
    unread: list[str],
) -> Iterator[tuple[str, int]]:
    """(path with `/`, bytes) of every image file below a folder.

    Hidden entries are left out. Links are followed, but each folder is visited once: level by level, its own place
    before links to it. A link to a folder that `root` is in leads nowhere.

    Args:
        root: the folder.
        only: the first-level sub-folders to look into, in composed form; None: everything.
        folders: filled with every folder visited (`""` is the root) and its modification time in ns.
        odd: filled with what is called like an image and is no file that can be read, and with folders that cannot be
            read, or that links lead to in vain: path and problem.
        unread: filled with pictures of kinds that are not read.

    Raises:
        OSError: the root cannot be read.
    """
    seen, level = _above(root), [""]
    while level:
        below: list[tuple[bool, str]] = []
        for folder in level:
            try:
                for entry in _enter(root, folder, seen, folders):
                    if only is not None and not folder and composed(entry.name) not in only:
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if is_class_folder(entry):
                        below.append((entry.is_symlink(), path))
                    elif _leads_nowhere(entry):
                        odd.append((f"{path}/", "a link to nothing, expected a folder of images"))
                    elif is_image(entry.name):
                        try:
                            yield path, _size(entry)
                        except UnreadableImageError as error:
                            odd.append((path, str(error)))
                    elif entry.name.lower().endswith(UNREAD):
                        unread.append(path)
            except OSError as error:
                if not folder:
                    raise
                odd.append((f"{folder}/", f"cannot be read ({error.strerror})"))
        level = [path for _, path in sorted(below)]


def _leads_nowhere(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a link to nothing, called as a folder would be: a class may be on a disk that is not there."""
    return "." not in entry.name and entry.is_symlink() and not os.path.exists(entry.path)


def _enter(
    root: Path, folder: str, seen: set[tuple[int, int]], folders: dict[str, int]
) -> Iterator["os.DirEntry[str]"]:
    """What is in a folder and not hidden, one by one: there may be millions; nothing if it was `seen` before."""
    status = os.stat(os.path.join(root, folder))
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(os.path.join(root, folder)) as entries:
        folders[folder] = status.st_mtime_ns
        yield from (entry for entry in entries if not is_hidden(entry.name))


def _above(root: Path) -> set[tuple[int, int]]:
    """The folders that a folder is in."""
    found = set()
    for folder in Path(os.path.realpath(root)).parents:
        try:
            status = os.stat(folder)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _size(entry: "os.DirEntry[str]") -> int:
    """The bytes of a file that can be read; UnreadableImageError with the problem alone if it is none."""
    try:
        status = entry.stat()
    except FileNotFoundError as error:
        raise UnreadableImageError("a link to nothing, expected an image file") from error
    except OSError as error:
        raise UnreadableImageError(f"cannot be read ({error.strerror})") from error
    _check_regular(status)
    return status.st_size


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
        raise UnreadableImageError(f"{kind}, expected an image file")
    if status.st_size > LARGEST:
        raise UnreadableImageError(f"{status.st_size / 1e9:.1f} GB, more than an image has; remove it")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file.

    Raises:
        UnreadableImageError: it is none, has more than `LARGEST` bytes, or cannot be read.
    """
    try:
        status = os.stat(path)
        _check_regular(status)
        if status.st_size == 0:  # some of /proc have no size and no end
            return b""
        # Between the question and the opening it may have become a pipe: that is not waited for.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(number, "rb") as file:
            _check_regular(os.fstat(number))
            return file.read()
    except OSError as error:
        raise UnreadableImageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path}: {error}") from error


def check_path(path: str) -> None:
    """Refuse a path that a label index cannot hold, or no terminal can show.

    Args:
        path: relative, with `/`.

    Raises:
        UslError: the problem alone.
    """
    if path.isascii() and path.isprintable() and "\\" not in path and path[1:2] != ":":
        return
    for character in path:
        category = unicodedata.category(character)
        if category == "Cs":
            raise UslError(f"file name {path!a} is not UTF-8; rename it")
        if category in ("Cc", "Zl", "Zp"):
            raise UslError(f"file name {path!a} has the control character {character!a}; rename it")
    if "\\" in path or re.match("[A-Za-z]:", path):
        raise UslError(f"file name {path!r} means a place on another disk or in another folder elsewhere; rename it")
