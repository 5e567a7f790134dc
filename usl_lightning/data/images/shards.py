"""Shards: tar and Parquet files with many images in each, which are read as the folder that they unpack to.

Standard library only, but that Parquet files are read with pyarrow, which is optional.

A folder stands for what is in its shards if it has some and, of what is not hidden, neither an image nor a folder.
Where the names of shards say of which split they are (`train-0000.tar`, `set-val-0.parquet`), its folders are the
splits; otherwise they are those within the shards. Neither is there for the system: a path below a folder of shards is
a `Place`.

What is in a shard, and where, is kept in the cache folder. It is true as long as the shard has the size, the inode and
the times of change it had, unless these were less than two seconds old.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usl_lightning.base.atomic import check_file
from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import Stamp, read_json, stamp_of, write_text
from usl_lightning.base.progress import progress
from usl_lightning.data.images import parquet_shard, tar_shard
from usl_lightning.data.images.shard import Shard
from usl_lightning.data.images.walk import UnreadableImageError, is_class_folder, is_hidden, is_image
from usl_lightning.labels.names import look

SUFFIXES = (".tar", ".parquet")

COMPRESSED = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".tar.lzma", ".zip",
    ".7z", ".rar",
)  # fmt: skip
"""Archives of which no file can be read alone, or not by us."""

RACY = 2_000_000_000  # ns; what was changed this shortly before it was looked at may change again unnoticed
_FORMAT = "usl-shard-index-1"
_UNREADABLE = "an archive that cannot be read file by file; unpack it, and pack it as .tar if it is to stay a shard"

_SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip


def split_called(name: str) -> str:
    """The split that a folder of this name is; "" if it is none."""
    return _SPLITS.get(look(name), "")


# where ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What a path stands for, at which there are shards.

    Attributes:
        shards: their files, sorted by name.
        below: the folder within them, with `/`; "" is all that is in them.
        split: the word in their names by which they were taken, if they were; what is in a folder of that name within
            them, as `tar -cf train.tar train` packs it, is in none.
    """

    shards: tuple[Path, ...]
    below: str = ""
    split: str = ""


def find(path: Path) -> Place | None:
    """What a path stands for if it is a folder of shards or is below one, and no folder itself; else None."""
    folder, below = path, list[str]()
    while not os.path.lexists(folder):
        below.insert(0, folder.name)
        if folder == folder.parent:
            return None
        folder = folder.parent
    shards = _shards_in(folder)
    if not shards or not below:
        return Place(shards) if shards else None
    if below[0] in split_words(Place(shards)):
        of_split = tuple(shard for shard in shards if _word(shard) == below[0])
        return Place(of_split, "/".join(below[1:]), below[0])
    return Place(shards, "/".join(below))


def is_place(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder, or one within shards."""
    return os.path.isdir(path) or find(Path(path)) is not None


def split_words(place: Place) -> tuple[str, ...]:
    """The words by which the names of shards say of which split they are, sorted; none if there are not two of them."""
    words = {_word(shard) for shard in place.shards} - {""}
    return () if place.below or len(words) < 2 else tuple(sorted(words))


def beside_splits(place: Place) -> list[str]:
    """The names of shards that do not say of which split they are."""
    return [shard.name for shard in place.shards if not _word(shard)]


def _shards_in(folder: Path) -> tuple[Path, ...]:
    """The shards of a folder of shards; none if it is another."""
    found = list[Path]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if is_image(entry.name) or is_class_folder(entry):
                    return ()
                if entry.name.lower().endswith(SUFFIXES):
                    found.append(folder / entry.name)
    except OSError:
        return ()
    return tuple(sorted(found))


def _word(shard: Path) -> str:
    """The only word in the name of a shard that is a split; "" if there is none, or are several."""
    words = [word for word in re.split(r"[^a-z]+", shard.name.lower()) if split_called(word)]
    return words[0] if len(words) == 1 else ""


def archive_in(root: Path) -> str:
    """The first archive below a folder in which no image was found, and what to do with it; "" if there is none."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in sorted(files):
            where = os.path.relpath(os.path.join(folder, name), root)
            if name.lower().endswith(COMPRESSED):
                return f"; {where}: {_UNREADABLE}"
            if name.lower().endswith(SUFFIXES):
                return f"; {where} is a shard: give a folder that holds shards alone, directly"
    return ""


# what is in them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """Where the files of a list are in shards, and the labels that they have there.

    Attributes:
        place: the shards.
        stamps: of each shard, when it was looked at.
        shard_of: of each file, which it is in.
        offsets: of each file; see `Shard`.
        labels: of each file, a place in `texts`; -1 where there is none.
        texts: the labels that occur; None: shards have none, so that their folders are classes.
        named: `texts` are the names of all classes, in label order.
    """

    place: Place
    stamps: tuple[Stamp | None, ...]
    shard_of: Sequence[int]
    offsets: Sequence[int]
    labels: Sequence[int]
    texts: tuple[str, ...] | None
    named: bool

    def taken(self, places: Sequence[int]) -> "Packed":
        """Of the files at these places alone, in their order."""
        return replace(
            self,
            shard_of=array("I", (self.shard_of[i] for i in places)),
            offsets=array("q", (self.offsets[i] for i in places)),
            labels=array("i", (self.labels[i] for i in places)),
        )

    def shard(self, i: int) -> Path:
        """The shard that a file is in."""
        return self.place.shards[self.shard_of[i]]

    def read(self, i: int, size: int) -> bytes:
        """The content of a file, of so many bytes.

        Raises:
            UnreadableImageError: it cannot be read.
            UslError: its shard is not what it was.
        """
        shard, stamp = self.shard(i), self.stamps[self.shard_of[i]]
        try:
            with open(shard, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_mtime_ns, status.st_size, status.st_ino) != stamp:
                    raise UslError(f"{shard}: changed since the folder was listed; start again")
                if shard.suffix.lower() == ".parquet":
                    return parquet_shard.read(str(shard), stamp, self.offsets[i])
                file.seek(self.offsets[i])
                return file.read(size)
        except OSError as error:
            raise UnreadableImageError(f"{shard}: cannot be read ({error.strerror or error})") from error

    def is_current(self, root: Path) -> bool:
        """Whether a path still stands for these shards, none of which has changed."""
        return find(root) == self.place and tuple(map(stamp_of, self.place.shards)) == self.stamps

    @property
    def labels_hash(self) -> str:
        """A digest of the label of every file."""
        texts = "\0".join(self.texts or ())
        return hashlib.sha256(f"{self.texts is None}\0{texts}\0{list(self.labels)}".encode()).hexdigest()


@dataclass
class Contents:
    """What is in the shards of a place, in the order in which it is there.

    Attributes:
        files, sizes: paths relative to the place, and bytes.
        odd: what is called like an image and is none that can be read, and why.
        packed: where they are.
    """

    files: list[str]
    sizes: Sequence[int]
    odd: list[tuple[str, str]]
    packed: Packed

    def named_by_shard(self) -> list[str]:
        """The files' paths in folders that are named after their shards, as those of Parquet files are anyway."""
        shards = ((file, self.packed.shard(i)) for i, file in enumerate(self.files))
        return [file if shard.suffix.lower() == ".parquet" else f"{shard.stem}/{file}" for file, shard in shards]


def contents(place: Place, only: tuple[str, ...] | None, cache: Path) -> Contents:
    """Look what is in the shards of a place.

    Args:
        place: the shards.
        only: the first-level folders to look into, in composed form; None: everything.
        cache: the folder in which an index of each shard is kept.

    Raises:
        UslError: a shard cannot be read, or has other classes than another one.
    """
    files, odd = list[str](), list[tuple[str, str]]()
    sizes, shard_of, offsets, labels = array("q"), array("I"), array("q"), array("i")
    code, labelled, names = dict[str, int](), False, dict[tuple[str, ...], Path]()
    stamps = tuple(map(stamp_of, place.shards))
    words = place.split or split_words(place)
    below = "/".join(filter(None, (place.split, place.below)))
    with progress("indexing shards", len(place.shards), "shard") as bar:
        for number, path in enumerate(place.shards):
            shard = _shard(path, cache)
            split = _word(path) if words else ""
            labelled = labelled or shard.labelled
            if shard.named:
                names.setdefault(shard.texts, path)
            codes = [*(code.setdefault(text, len(code)) for text in shard.texts), -1]
            for i, name in enumerate(shard.names):
                file = _below(_in_split(name, split), below)
                if file is None or (only is not None and composed(file.partition("/")[0]) not in only):
                    continue
                files.append(file)
                sizes.append(shard.sizes[i])
                shard_of.append(number)
                offsets.append(shard.offsets[i])
                labels.append(codes[shard.labels[i]])
            odd += [(f"{path.name}/{name}" if name else path.name, problem) for name, problem in shard.odd]
            bar.update()
    if len(names) > 1:
        first, second = [*names.values()][:2]
        raise UslError(f"{second}: its classes are others than those of {first}; put them in folders of their own")
    odd += [(path.name, _UNREADABLE) for path in _archives(place)]
    texts = tuple(code) if labelled else None
    return Contents(files, sizes, odd, Packed(place, stamps, shard_of, offsets, labels, texts, bool(names)))


def _in_split(name: str, split: str) -> str:
    """The path of a file that is in the folder of a split, whether that is packed with it or not."""
    return name if not split or name.startswith(f"{split}/") else f"{split}/{name}"


def _below(name: str, folder: str) -> str | None:
    """The path of a file relative to a folder; None if it is not in that."""
    if not folder:
        return name
    parts = name.split("/", depth := folder.count("/") + 1)
    return parts[-1] if len(parts) > depth and composed("/".join(parts[:-1])) == composed(folder) else None


def _archives(place: Place) -> list[Path]:
    folder = place.shards[0].parent
    return sorted(folder / name for name in os.listdir(folder) if name.lower().endswith(COMPRESSED))


def _shard(path: Path, cache: Path) -> Shard:
    """What is in a shard, by its index if that is kept and true."""
    key = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()[:32]
    index = cache / "shards" / f"{key}.json"
    started = time.time_ns()
    try:
        check_file(path)
        times = _times(path)
        with contextlib.suppress(UslError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return _from_json(read_json(index, "it is made again"), times)
        shard = (parquet_shard if path.suffix.lower() == ".parquet" else tar_shard).look_into(path)
        unchanged = times == _times(path) and max(times[:2]) <= started - RACY
    except OSError as error:
        raise UslError(f"{path}: cannot be read ({error.strerror or error})") from error
    if unchanged:
        about = {"format": _FORMAT, "made_of": str(path), "times": times, **vars(shard)}
        with contextlib.suppress(UslError, OSError, UnicodeError):  # no place to keep it: the next start looks again
            write_text(index, json.dumps(about))
    return shard


def _times(path: Path) -> list[int]:
    """When a file was modified, in ns, and when its entry was, which no program can set; its size and inode."""
    status = os.stat(path)
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]


def _from_json(value: Mapping[str, Any], times: list[int]) -> Shard:
    """Raises ValueError if it is not of this shard, or damaged."""
    given = {name: value[name] for name in Shard.__annotations__}
    odd = [(str(name), str(problem)) for name, problem in given.pop("odd")]
    shard = Shard(**{**given, "texts": tuple(given["texts"])}, odd=odd)
    columns = (shard.names, shard.offsets, shard.sizes, shard.labels)
    if value["format"] != _FORMAT or value["times"] != times or len({len(column) for column in columns}) != 1:
        raise ValueError("an index of another shard")
    return shard
