"""What a folder holds: images and their kinds, copies, files that cannot be read, files that are no images."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import not_a_folder
from usl_lightning.base.machine import cores
from usl_lightning.base.progress import progress
from usl_lightning.data.images import folders, shards, splits
from usl_lightning.data.images.decode import decode, is_transparent, probe
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.images.walk import SUFFIXES, UnreadableImageError, is_hidden, is_image

LOOKED_AT = 20_000
"""Files of a split that are opened, evenly spaced if there are more."""


@dataclass(frozen=True)
class Looked:
    """One image file.

    Attributes:
        file: `train/cat/1.png`, relative to the folder that was named.
        height, width: in pixels; 0 if it cannot be read.
        grey: whether it has one channel.
        digest: of its bytes.
        away: a link leads from here out of the folder of its split.
        transparent: it has pixels that show what is behind them.
        problem: why it cannot be read; empty if it can.
    """

    file: str
    height: int = 0
    width: int = 0
    grey: bool = False
    digest: bytes = b""
    away: bool = False
    transparent: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        name: `train` or `test`.
        count: image files, those that cannot be read among them.
        looked: those that were opened.
        class_counts: images of each class folder, by name; images beside class folders are in none. Or of each label
            that stands in shards.
        of_folders: it is the former.
    """

    name: str
    count: int
    looked: tuple[Looked, ...]
    class_counts: dict[str, int]
    of_folders: bool = True

    @property
    def readable(self) -> list[Looked]:
        """The opened files that can be read."""
        return [one for one in self.looked if not one.problem]

    @property
    def unreadable(self) -> list[Looked]:
        """The opened files that cannot."""
        return [one for one in self.looked if one.problem]


@dataclass(frozen=True)
class Inspection:
    """A folder of images.

    Attributes:
        folder: as it was named.
        data: the folder to take images from: that, or the only folder in it.
        train: the images to learn and select from.
        test: the images to measure on; None if no folder is called `test` or `val` beside `train`.
        others: how many files of other types are ignored, by suffix.
        decoding: seconds of one core to read and decode an image.
    """

    folder: Path
    data: Path
    train: Split
    test: Split | None
    others: dict[str, int]
    decoding: float

    @property
    def channels(self) -> int:
        """1 if every readable image is grey, else 3."""
        return 1 if all(one.grey for one in self.train.readable) else 3

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images have each (height, width)."""
        return Counter((one.height, one.width) for split in self._splits for one in split.readable)

    @property
    def side(self) -> int:
        """The median of the shorter sides in pixels."""
        sides = sorted(min(one.height, one.width) for one in self.train.readable)
        return sides[len(sides) // 2]

    @property
    def copies(self) -> list[list[str]]:
        """Groups of files of the training images with the same bytes, each of two or more."""
        return _groups(self.train.readable)

    @property
    def leaked(self) -> list[list[str]]:
        """Groups of files with the same bytes that are in both splits."""
        if self.test is None:
            return []
        both = {one.digest for one in self.train.readable} & {one.digest for one in self.test.readable}
        return _groups([one for split in self._splits for one in split.readable if one.digest in both])

    @property
    def away(self) -> list[Looked]:
        """Images to choose from that are elsewhere, behind a link; a person is not shown those."""
        return [one for one in self.train.readable if one.away]

    @property
    def transparent(self) -> list[Looked]:
        """Images of all splits that have transparent pixels."""
        return [one for split in self._splits for one in split.readable if one.transparent]

    @property
    def unreadable(self) -> list[Looked]:
        """Files of all splits that cannot be read."""
        return [one for split in self._splits for one in split.unreadable]

    @property
    def _splits(self) -> list[Split]:
        return [self.train] if self.test is None else [self.train, self.test]


def inspect_folder(folder: Path, *, looked_at: int = LOOKED_AT) -> Inspection:
    """Look at all images of a folder, or at evenly spaced ones if there are very many.

    Args:
        folder: the folder; where it holds nothing but one folder, that is meant.
        looked_at: files of a split that are opened at most.

    Raises:
        UslError: no such folder, no image in it, or none that can be read.
    """
    if not shards.is_place(folder):
        raise UslError(f"usl init: {folder}: {not_a_folder(folder)}; expected the folder of your images")
    others = _others(folder)
    data = splits.only_folder(folder)
    places = splits.split_folders("folder", str(data))
    start, looks = time.perf_counter(), 0
    looked = {}
    for name, root in places.items():
        if name == "val" and "test" in places:
            continue
        looked[name] = _look_at(name, root, folder, others, looked_at)
        looks += len(looked[name].looked)
    train = looked["train"]
    if not train.readable:
        raise UslError(
            f"usl init: {folder}: none of its {len(train.looked)} images can be read; first: {train.looked[0].problem}"
        )
    seconds = (time.perf_counter() - start) * cores() / looks
    return Inspection(folder, data, train, looked.get("test"), others, seconds)


def _look_at(name: str, root: Path, folder: Path, others: dict[str, int], most: int) -> Split:
    try:
        listing = folders.scan(root, trust_index=False)
    except UslError as error:
        if "no image in it" in str(error):
            there = f"; it has {told(others)}" if others else ""
            kinds = ", ".join(SUFFIXES)
            raise UslError(f"usl init: {root}: no image in it{there}; expected files that end in {kinds}") from error
        raise
    unread = [(place, problem) for place, problem in listing.odd if place.endswith("/")]
    if unread:
        place, problem = unread[0]
        raise UslError(
            f"usl init: {root / place}: {problem}; all that is in it, a class perhaps, would be missing: mend that, or"
            " move it elsewhere"
        )
    for suffix in shards.SUFFIXES if listing.packed is not None else ():
        others.pop(suffix, None)
    if name == "train":
        splits.check_no_splits(root, listing)
    count = len(listing.files)
    picked = range(count) if count <= most else [i * count // most for i in range(most)]
    looked = map_in_order(lambda i: _look(listing, i, os.path.relpath(root / listing.files[i], folder)), picked)
    with progress(f"looking at {name} images", len(picked), "img") as bar:
        found = []
        for one in looked:
            found.append(one)
            bar.update()
    for file, problem in listing.odd:
        place = os.path.relpath(listing.beside / file, folder)
        found.append(Looked(place, problem=f"{place}: {problem}"))
    of_folders = listing.packed is None or listing.packed.texts is None
    return Split(name, count + len(listing.odd), tuple(found), _class_counts(listing), of_folders)


def _class_counts(listing: FileList) -> dict[str, int]:
    if listing.packed is not None and listing.packed.texts is not None:
        texts, counted = listing.packed.texts, Counter(listing.packed.labels)
        return {text: counted[label] for label, text in enumerate(texts)}
    counts = dict.fromkeys(listing.class_folders(), 0)
    for file in listing.files:
        first, slash, _ = file.partition("/")
        if slash:
            counts[first] += 1
    return counts


def _look(listing: FileList, i: int, name: str) -> Looked:
    path = Path(listing.where(i))
    try:
        content = listing.read(i)
        header = probe(content, name)
        decode(content, name, 3, 16)
        transparent = header.alpha and is_transparent(content, name)
    except UnreadableImageError as error:
        return Looked(name, problem=str(error).replace(f"{path}: ", f"{name}: "))
    away = listing.packed is None and not path.resolve().is_relative_to(listing.root.resolve())
    digest = hashlib.sha256(content).digest()
    return Looked(name, header.height, header.width, header.grey, digest, away, transparent)


def _groups(looked: Sequence[Looked]) -> list[list[str]]:
    by_digest: dict[bytes, list[str]] = {}
    for one in looked:
        by_digest.setdefault(one.digest, []).append(one.file)
    return [files for files in by_digest.values() if len(files) > 1]


def _others(folder: Path) -> dict[str, int]:
    """How many files are no images, by suffix, the most frequent first; hidden ones do not count."""
    return dict(Counter(PurePath(name).suffix.lower() or name for name in _walk(folder)).most_common())


def _walk(folder: Path) -> Iterator[str]:
    for _, below, files in os.walk(folder):
        below[:] = [name for name in below if not is_hidden(name)]
        yield from (name for name in files if not is_hidden(name) and not is_image(name))


def told(counts: dict[str, int], most: int = 4) -> str:
    """`3 .txt, 1 .csv, …`"""
    shown = [f"{count} {name}" for name, count in list(counts.items())[:most]]
    return ", ".join(shown + ["…"] * (len(counts) > most))
