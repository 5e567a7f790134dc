"""Folders of image files: which files there are, and their fingerprint.

Standard library only, because `usl run` asks before torch is imported. Decoding is in `decode.py`.

The list of a big folder is kept in a small file under the cache folder (`$USL_CACHE`, else
`~/.cache/usl-lightning`). The rule by which it is trusted: every sub-folder has the modification time it
had, and that time was at least two seconds old when the folder was scanned. That finds files added, removed
and renamed. A file rewritten in place keeps its folder's time; it is found when it is read with another
size than listed, and by `usl run`, which always scans afresh. Of a folder of shards no list is kept, but an
index of each shard, see `shards.py`.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import changed, not_a_folder, once, read_json
from usl_lightning.data.images import shards
from usl_lightning.data.images.shards import RACY, Packed, Place
from usl_lightning.data.images.walk import SUFFIXES, check_path, read_file
from usl_lightning.data.images.walk import walk as _walk

log = logging.getLogger("usl_lightning")

_INDEXED = 1000  # smaller folders are scanned faster than their list is checked
_INDEX_FORMAT = "usl-folder-index-4"
_AT_A_TIME = 1000  # values that are text at a time when a list is written


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
        packed: where they are if the folder is one of shards; `folders` are those within the shards then.
    """

    root: Path
    files: tuple[str, ...]
    sizes: Sequence[int]
    folders: dict[str, int]
    only: tuple[str, ...] | None = None
    odd: tuple[tuple[str, str], ...] = ()
    packed: Packed | None = None

    def read(self, i: int) -> bytes:
        """The content of a file.

        Raises:
            UnreadableImageError: it is none, or cannot be read.
            UslError: the shard that it is in has changed.
        """
        if self.packed is not None:
            return self.packed.read(i, self.sizes[i])
        return read_file(os.path.join(self.root, self.files[i]))

    def where(self, i: int) -> str:
        """The path of a file, for messages; of one in a shard, below that."""
        return os.path.join(self.root if self.packed is None else self.packed.shard(i), self.files[i])

    @property
    def beside(self) -> Path:
        """The folder to which what is odd is relative: that of the shards, if there are some."""
        return self.root if self.packed is None else self.packed.place.shards[0].parent

    def without(self, left_out: set[str]) -> "FileList":
        """The list without some files."""
        return self._taken([i for i, file in enumerate(self.files) if file not in left_out])

    def _taken(self, places: Sequence[int]) -> "FileList":
        """The list of the files at these places, in their order."""
        sizes = array("q", (self.sizes[i] for i in places))
        packed = None if self.packed is None else self.packed.taken(places)
        return replace(self, files=tuple(self.files[i] for i in places), sizes=sizes, packed=packed)

    def class_folders(self) -> list[str]:
        """The first-level sub-folders, sorted by code point."""
        return sorted(folder for folder in self.folders if folder and "/" not in folder)

    def folders_in(self, folder: str) -> set[str]:
        """The names of the sub-folders of a first-level one."""
        return {path.split("/")[1] for path in self.folders if path.startswith(f"{folder}/")}


def fingerprint_of(files: Sequence[str], sizes: Sequence[int]) -> str:
    """`sha256:…` over each path (composed, UTF-8), NUL, size in decimal digits, NUL."""
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{composed(file)}\0{size}\0".encode())
    return "sha256:" + digest.hexdigest()


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
        if _unchanged(known):
            return True
        found = _scan(root, only, trust_index=False)
        if (found.files, found.sizes, found.packed) != (known.files, known.sizes, known.packed):
            raise changed(root)
        return True

    return once(("folder", os.path.abspath(root), only), lambda: _scan(root, only, trust_index), current)


def _scan(root: Path, only: tuple[str, ...] | None, trust_index: bool) -> FileList:
    if (place := shards.find(root)) is not None:
        return _scan_shards(root, place, only)
    if not os.path.isdir(root):
        raise UslError(f"{root}: {not_a_folder(root)}; give the folder of the images with --data.dir")
    index = _index_path(root, only)
    if trust_index and (known := _read_index(index, root, only)) is not None:
        return known
    started = time.time_ns()
    folders: dict[str, int] = {}
    odd: list[tuple[str, str]] = []
    unread: list[str] = []
    files, sizes = list[str](), array("q")
    try:
        for file, size in _walk(root, only, folders, odd, unread):
            files.append(file)
            sizes.append(size)
    except OSError as error:
        raise UslError(f"{root}: cannot be read ({error.strerror})") from error
    result = _in_order(root, files, sizes, folders, only, odd)
    if unread and files:
        _tell_of_unread(root, min(unread), len(unread))
    _check_names(result)
    if len(files) >= _INDEXED and not odd:  # what is wrong with those may be mended elsewhere
        _write_index(index, result, started)
    return result


def _in_order(
    root: Path,
    files: list[str],
    sizes: Sequence[int],
    folders: dict[str, int],
    only: tuple[str, ...] | None,
    odd: Iterable[tuple[str, str]],
    packed: Packed | None = None,
) -> FileList:
    """The list of files that were found in any order. Ten million take memory: here 150 bytes each, at most."""
    order = sorted(range(len(files)), key=lambda i: composed(files[i]))
    return FileList(root, tuple(files), sizes, folders, only, tuple(sorted(odd)), packed)._taken(order)


def _scan_shards(root: Path, place: Place, only: tuple[str, ...] | None) -> FileList:
    inside = shards.contents(place, only, cache_folder())
    if place.below and not inside.files:
        raise UslError(f"{root}: no such folder, nor in the shards of {place.shards[0].parent}")
    found = _in_order(root, inside.files, inside.sizes, {}, only, inside.odd, inside.packed)
    if inside.packed.texts is not None and _same_in_shards(found) is not None:  # folders are no classes there
        found = _in_order(root, inside.named_by_shard(), inside.sizes, {}, only, inside.odd, inside.packed)
    found = replace(found, folders=dict.fromkeys(_folders_of(found.files), 0))
    _check_names(found)
    return _last_of_each(found)


def _folders_of(files: Sequence[str]) -> set[str]:
    """All folders that files are in."""
    found = {""}
    for file in files:
        folder = file.rpartition("/")[0]
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _same_in_shards(found: FileList) -> tuple[Path, Path, str] | None:
    """Two shards with a file of the same path, and that; None if there are none."""
    files, packed = found.files, found.packed
    assert packed is not None
    for i in range(len(files) - 1):
        if files[i] == files[i + 1] and packed.shard_of[i] != packed.shard_of[i + 1]:
            return packed.shard(i), packed.shard(i + 1), files[i]
    return None


def _last_of_each(found: FileList) -> FileList:
    """Without what comes again later in the same shard, of which unpacking leaves nothing."""
    same = _same_in_shards(found)
    if same is not None:
        raise UslError(f"{same[0]}: {same[2]} is in {same[1].name} too; give each file a path of its own")
    files = found.files
    kept = [i for i in range(len(files)) if i + 1 == len(files) or files[i] != files[i + 1]]
    return found if len(kept) == len(files) else found._taken(kept)


def labels_in_shards(root: Path) -> bool:
    """Whether a folder is one of shards in which labels stand beside the images, so that folders are no classes."""
    if shards.find(root) is None:
        return False
    packed = scan(root).packed
    return packed is not None and packed.texts is not None


@cache  # told once
def _tell_of_unread(root: Path, first: str, count: int) -> None:
    log.warning(
        "%s: %s is left out, of %d pictures of kinds that are not read; convert them, to PNG or JPEG, to have them",
        root, printable(first, 80), count,
    )  # fmt: skip


def _check_names(found: FileList) -> None:
    odd = [file for file, _ in found.odd]
    for path in chain(found.files, odd, found.folders):
        try:
            check_path(path)
        except UslError as error:
            raise UslError(f"{found.root}: {error}") from error
    for first, second in _twins([*found.files, *odd]):
        what = "case" if composed(first) != composed(second) else "how their accents are written"
        raise UslError(
            f"{found.root}: {first} and {second} differ only by {what}, so that they are one file on"
            " other file systems; rename one"
        )
    if not found.files:
        first = "".join(f"; {file}: {problem}" for file, problem in found.odd[:1]) or shards.archive_in(found.root)
        raise UslError(f"{found.root}: no image in it; expected files that end in {', '.join(SUFFIXES)}{first}")


def _twins(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that are one name on some file systems; their hashes alone are compared at first."""
    hashes = sorted(hash(_folded(name)) for name in names)
    twice = {one for one, other in pairwise(hashes) if one == other}
    seen: dict[str, str] = {}
    for name in names if twice else ():
        key = _folded(name)
        if hash(key) in twice and seen.setdefault(key, name) != name:
            yield seen[key], name


def _folded(name: str) -> str:
    return name.lower() if name.isascii() else composed(name).casefold()


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
        found = FileList(root, tuple(value["files"]), array("q", value["sizes"]), value["folders"], only)
        return found if is_true(found, value["started"]) else None
    except (UslError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None  # missing, damaged or outdated: scan


def is_true(found: FileList, started: int) -> bool:
    """Whether a list is to be trusted still, by the rule above.

    Args:
        found: the list.
        started: when its scan began, in ns.
    """
    if found.packed is not None:
        return _unchanged(found) and all(stamp is None or stamp[0] <= started - RACY for stamp in found.packed.stamps)
    try:
        return all(
            time <= started - RACY and os.stat(os.path.join(found.root, folder)).st_mtime_ns == time
            for folder, time in found.folders.items()
        )
    except OSError:
        return False


def _unchanged(found: FileList) -> bool:
    """Whether all folders are there and have the modification time they had; or all shards."""
    if found.packed is not None:
        return found.packed.is_current(found.root)
    try:
        return all(
            os.stat(os.path.join(found.root, folder)).st_mtime_ns == time for folder, time in found.folders.items()
        )
    except OSError:
        return False


def _write_index(index: Path, found: FileList, started: int) -> None:
    about = {"format": _INDEX_FORMAT, "root": str(found.root), "started": started, "folders": found.folders}
    with (
        contextlib.suppress(UslError, OSError),  # no place to keep it: the next start scans again
        atomic_path(index) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
    ):
        file.writelines(_json_parts(about, {"files": found.files, "sizes": found.sizes}))


def _json_parts(about: Mapping[str, Any], lists: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The JSON of an object with long lists, in parts."""
    yield json.dumps(about)[:-1]
    for key, values in lists.items():
        yield f", {json.dumps(key)}: ["
        for start in range(0, len(values), _AT_A_TIME):
            yield (", " if start else "") + json.dumps(list(values[start : start + _AT_A_TIME]))[1:-1]
        yield "]"
    yield "}"
