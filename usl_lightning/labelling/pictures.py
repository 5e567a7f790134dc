"""The images of a label file, for a browser: from their folder, or from the data set that holds them in memory."""

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from usl_lightning.base.configs import load_yaml
from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import Stamp, not_a_folder, sha256_of, stamp_of
from usl_lightning.base.typed import as_count
from usl_lightning.data.images import folders, shards, splits
from usl_lightning.data.images.decode import decode
from usl_lightning.data.images.folders import FileList, is_true
from usl_lightning.data.images.rendering import WHITE
from usl_lightning.data.images.unreadable import unreadable
from usl_lightning.data.images.walk import read_file
from usl_lightning.labelling.shown import Pictures
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.entries import DatasetId
from usl_lightning.labels.names import clean

if TYPE_CHECKING:  # a folder's images are shown without importing torch
    from usl_lightning.data.images.source import ImageSource


class FolderPictures(Pictures):
    """Image files below one folder; nothing outside of it is ever read, whatever a link says.

    What is shown is what was chosen: the chosen files have the `hashes` of the label file, or the whole folder has its
    fingerprint, and from then on they stay as they are. What an image that was not chosen is, the place in the folder
    alone says: it is shown and answered as long as the folder is the one that the label file means.

    Args:
        root: the folder.
        index: the label file, whose `files` are relative to the folder.
        only: the first-level sub-folders that the data set is made of; None: all.
        skip: files that cannot be read are no part of the data set.
        background: what transparent pixels are laid on.

    Raises:
        UslError: a file is not there or another one, or a link leads out of the folder.
    """

    def __init__(
        self,
        root: Path,
        index: LabelIndex,
        only: tuple[str, ...] | None = None,
        *,
        skip: bool = False,
        background: str = WHITE,
    ) -> None:
        assert index.dataset is not None
        self.root, self._only, self._skip, self._dataset = root.resolve(), only, skip, index.dataset
        self._background = background
        self._scan: _Scan | None = None
        self._files: dict[int, str] = {}
        self._hashes: dict[int, str] = {}
        self._stamps: dict[int, Stamp | None] = {}  # of the chosen files, when their content was looked at
        self._shown: dict[int, str] = {}  # the hash of what was shown first
        self.match(index)

    def match(self, index: LabelIndex) -> None:
        """Take the label file as it is now; refuse one of other images than those shown so far."""
        if index.dataset != self._dataset:
            unknown = [image for image in index.indices if image not in self._files]
            what = f"image {unknown[0]} is not one that this server knows" if unknown else f"{index.path} was replaced"
            raise UslError(f"{what}; start usl label again")
        if not index.hashes:
            index.check(self._scanned().dataset, files=self._scanned().listing.files)
        self._files, self._hashes = self._found(index, {})
        self._index, self._stamps = index, {}

    def note(self, index: LabelIndex) -> None:
        self._files, self._hashes = self._found(index, self._hashes)
        self._index = index

    def _found(self, index: LabelIndex, known: Mapping[int, str]) -> tuple[dict[int, str], dict[int, str]]:
        """Files and hashes of a label file's images; those that are known are not read again."""
        files = dict(zip(index.indices, map(self._spelled, index.files or ()), strict=True))
        for image, file in files.items():
            if image not in known:
                self._check_inside(file, str(index.path))
        found = {image: known.get(image) or sha256_of(self._read(file)) for image, file in files.items()}
        for image, expected in zip(index.indices, index.hashes, strict=False):
            if found[image] != expected:
                raise UslError(
                    f"{index.path}: {files[image]} in {self.root} has another content than when it was chosen; give the"
                    " folder the images were chosen from with --dir, or select again"
                )
        return files, found

    def entry(self, image: int) -> tuple[str, str]:
        """The file and the hash by which the label file is to name an image that was shown and has an answer now."""
        if not self.has(image):
            raise UslError(f"image {image} is none of {self.root} that can be shown")
        if image not in self._shown:
            raise UslError(f"{self.root / self.name(image)}: was not shown; look at it first")
        self._check_folder()
        self._content(image)
        return self.name(image), self._shown[image]

    def check(self, image: int) -> None:
        self._check_fingerprint()
        self._content(image)

    def _check_fingerprint(self) -> None:
        """Without hashes of the chosen files the folder as a whole says which images they are."""
        if not self._index.hashes:
            self._index.check(self._scanned().dataset)

    def _check_folder(self) -> None:
        """Make sure that the folder is the one that the label file means, which may have grown."""
        self._check_fingerprint()
        for image, file in self._files.items():
            stamp = self._stamp(file)
            if stamp is None or stamp != self._stamps.get(image):
                self._content(image)
                self._stamps[image] = stamp

    def name(self, image: int) -> str:
        name = self._files.get(image) or self._others.get(image)
        if name is None:
            raise UslError(f"image {image} is not one that this server knows; start usl label again")
        return name

    def place(self, name: str) -> int:
        spelled = self._spelled(name)
        found = [image for image, file in {**self._others, **self._files}.items() if file == spelled]
        if not found:
            raise UslError(f"{name}: no such image in {self.root}; expected the name of a file below it")
        return found[0]

    def places(self) -> Iterable[int]:
        return {**self._others, **self._files}

    def has(self, image: int) -> bool:
        if image in self._files:
            return True
        return image in self._others and self._inside(self._others[image])

    def pixels(self, image: int) -> NDArray[np.uint8]:
        content = self._content(image)
        self._shown.setdefault(image, sha256_of(content))
        return decode(content, str(self.root / self.name(image)), 3, None, self._background)

    def _content(self, image: int) -> bytes:
        """The file of an image; of a chosen one, what was chosen, of another what was shown first."""
        name = self.name(image)
        path = self.root / name
        self._check_not_out(name)
        content = self._read(name)
        known, chosen = self._hashes.get(image), image in self._hashes
        if (known or self._shown.get(image)) not in (None, sha256_of(content)):
            what = "chosen; put that file back, or select again" if chosen else "shown; put that file back"
            raise UslError(f"{path}: was replaced since it was {what}")
        scan = None if chosen or image in self._shown else self._scan
        if scan is not None and len(content) != scan.listing.sizes[image]:
            raise UslError(f"{path}: was replaced since usl label was started; put that file back, or start it again")
        return content

    def _spelled(self, file: str) -> str:
        """The name of a file as this folder has it: accents may be composed or not, in each part of the path."""
        if file.isascii() or self._is_there(file):
            return file
        try:
            return (self._scan or self._scanned()).spelled.get(composed(file), file)
        except UslError:
            return file

    def _check_inside(self, file: str, where: str) -> None:
        if not self._is_there(file):
            raise UslError(
                f"{where}: {file} is not in {self.root}; give the folder the images were chosen from with --dir"
            )
        self._check_not_out(file)

    def _check_not_out(self, file: str) -> None:
        if not self._inside(file):
            raise UslError(
                f"{self.root / file}: a link out of {self.root}, and nothing outside of that folder is shown; copy the"
                " image"
            )

    def _is_there(self, file: str) -> bool:
        return (self.root / file).is_file()

    def _inside(self, file: str) -> bool:
        return (self.root / file).resolve().is_relative_to(self.root)

    def _read(self, file: str) -> bytes:
        return read_file(self.root / file)

    def _stamp(self, file: str) -> Stamp | None:
        return stamp_of(self.root / file)

    @property
    def _others(self) -> Mapping[int, str]:
        """All files of the data set; none if the folder has changed since, so that positions mean nothing."""
        try:
            scan = self._scan or self._scanned()  # what was there when the server was started is good enough
        except UslError:
            return {}
        return scan.files if scan.dataset == self._dataset else {}

    def _scanned(self) -> "_Scan":
        """The folder as it is now; it is looked through again if it may have changed."""
        if self._scan is None or not is_true(self._scan.listing, self._scan.started):
            started = time.time_ns()
            found = folders.scan(self.root, self._only)
            found = found.without(set(unreadable(found))) if self._skip else found
            fingerprint = folders.fingerprint_of(found.files, found.sizes)
            dataset = replace(self._dataset, size=len(found.files), fingerprint=fingerprint)
            spelled = {composed(file): file for file in found.files if not file.isascii()}
            self._scan = _Scan(found, dict(enumerate(found.files)), spelled, dataset, started)
        return self._scan


class ShardPictures(FolderPictures):
    """Image files in the shards of a folder: shards may be links, what is in them is none."""

    def _is_there(self, file: str) -> bool:
        return self._place_of(file) is not None

    def _inside(self, file: str) -> bool:
        return True

    def _read(self, file: str) -> bytes:
        place = self._place_of(file)
        if place is None:
            raise UslError(f"{self.root / file}: is not in the shards any more; put them back, or select again")
        return self._scanned().listing.read(place)

    def _stamp(self, file: str) -> Stamp | None:
        place, packed = self._place_of(file), self._scanned().listing.packed
        return None if place is None or packed is None else packed.stamps[packed.shard_of[place]]

    def _place_of(self, file: str) -> int | None:
        files, key = self._scanned().listing.files, composed(file)
        place = bisect_left(files, key, key=composed)
        return place if place < len(files) and files[place] == file else None


class _Scan(NamedTuple):
    """What a folder held when it was looked through.

    Attributes:
        listing: its list.
        files: by position.
        spelled: those that are not ASCII, by their composed form.
        dataset: what data set that is.
        started: when, in ns.
    """

    listing: FileList
    files: Mapping[int, str]
    spelled: Mapping[str, str]
    dataset: DatasetId
    started: int


class SourcePictures(Pictures):
    """Images that a data set holds in memory.

    Args:
        source: the data set.
        index: the label file.

    Raises:
        UslError: it was chosen from other images.
    """

    def __init__(self, source: "ImageSource", index: LabelIndex) -> None:
        self.source, self.classes = source, frozenset(source.classes)
        self.match(index)

    def match(self, index: LabelIndex) -> None:
        from usl_lightning.data.images.source import dataset_id

        index.check(dataset_id(self.source))

    def check(self, image: int) -> None:
        """Images in memory stay what they are."""

    def note(self, index: LabelIndex) -> None:
        """They are all known."""

    def entry(self, image: int) -> tuple[str, str]:
        if not self.has(image):
            raise UslError(f"{self.source.name} has no image {image}")
        return "", ""

    def name(self, image: int) -> str:
        return f"image {image} of {self.source.name}"

    def place(self, name: str) -> int:
        image = as_count(name.removeprefix("image "))
        if image is None or not self.has(image):
            raise UslError(f"{name}: no such image; expected a number from 0 to {len(self.source) - 1}")
        return image

    def places(self) -> Iterable[int]:
        return range(len(self.source))

    def has(self, image: int) -> bool:
        return 0 <= image < len(self.source)

    def pixels(self, image: int) -> NDArray[np.uint8]:
        import torch

        return self.source.read(torch.tensor([image]))[0].permute(1, 2, 0).numpy()


def open_pictures(index: LabelIndex, dir: str | None = None) -> Pictures:
    """The images that a label file is about.

    Args:
        index: as read from its file; the `config.yaml` beside that tells where the images are.
        dir: the data folder instead (for `folder`, the images' own), as `--data.dir` names it.

    Raises:
        UslError: the images are not found, or are others.
    """
    assert index.dataset is not None
    name, split = index.dataset.name, index.dataset.split
    settings = _data_settings(Path(str(index.path)))
    place = dir or settings.get("dir")
    if index.files is None:
        return _from_memory(index, place)
    folder = place if place is None else os.path.expanduser(place)
    if folder is not None and not shards.is_place(folder):
        here = "" if os.path.isabs(folder) else f" in {os.getcwd()}"
        what = not_a_folder(folder)
        raise UslError(f"{place}: {what}{here}; give the folder of the images of {index.path} with --dir")
    if place is None and name == "folder":
        raise UslError(f"{index.path}: nothing says where its images are; give their folder with --dir")
    places = splits.split_folders(name, place)
    if split not in places:
        raise UslError(f"{place}: has no split '{split}'; give the folder of the images of {index.path} with --dir")
    by_folder = settings.get("labels_file") is None and settings.get("classes") is None
    only = splits.class_names(name, places["train"], settings.get("class_list")) if by_folder else None
    skip, background = settings.get("on_error") == "skip", settings.get("background") or WHITE
    shown = FolderPictures if shards.find(places[split]) is None else ShardPictures
    pictures = shown(places[split], index, only, skip=skip, background=background)
    pictures.classes = frozenset(map(clean, settings.get("classes") or ()))
    if by_folder and not folders.labels_in_shards(places["train"]):
        pictures.classes = frozenset(map(composed, splits.folders_in(places["train"])))
    elif settings.get("classes") is None:
        pictures.classes = frozenset(index.classes)
    return pictures


def _from_memory(index: LabelIndex, place: str | None) -> Pictures:
    from usl_lightning.data.images.opening import open_source

    assert index.dataset is not None
    return SourcePictures(open_source(index.dataset.name, index.dataset.split, dir=place), index)


def _data_settings(labels: Path) -> Mapping[str, Any]:
    """What the stage that wrote the label file had for its data; empty if the file was moved elsewhere."""
    config = labels.parent / "config.yaml"
    if not os.path.isfile(config):
        return {}
    data = load_yaml(config).get("data")
    return (data.get("init_args") or {}) if isinstance(data, Mapping) else {}
