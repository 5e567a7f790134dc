"""The images of a label file, for a browser: from their folder, or from the data set that holds them in memory."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from usl_lightning.base.configs import load_yaml
from usl_lightning.base.errors import UslError
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import decode
from usl_lightning.data.images.rendering import WHITE
from usl_lightning.data.images.unreadable import unreadable
from usl_lightning.data.images.walk import read_file
from usl_lightning.labels import LabelIndex

if TYPE_CHECKING:  # a folder's images are shown without importing torch
    from usl_lightning.data.images.source import ImageSource

_PNG_PIXELS = 256 * 256  # larger pictures are sent as JPEG


class Pictures(ABC):
    """Images by their position in the data set."""

    @abstractmethod
    def name(self, image: int) -> str:
        """What to call it.

        Raises:
            UslError: it is not known.
        """

    @abstractmethod
    def has(self, image: int) -> bool:
        """Whether it can be shown."""

    @abstractmethod
    def pixels(self, image: int) -> NDArray[np.uint8]:
        """uint8 [h, w, c], c = 1 or 3.

        Raises:
            UslError: it cannot be read.
        """

    def encoded(self, image: int, side: int) -> tuple[bytes, str]:
        """A file for the browser and its media type, at most `side` pixels wide and high.

        Raises:
            UslError: the image cannot be read.
        """
        array = self.pixels(image)
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        kind = "PNG" if picture.width * picture.height <= _PNG_PIXELS else "JPEG"
        content = io.BytesIO()
        picture.save(content, kind, quality=92)
        return content.getvalue(), f"image/{kind.lower()}"


class FolderPictures(Pictures):
    """Image files below one folder; nothing outside of it is ever read, whatever a link says.

    Args:
        root: the folder.
        index: the label file, whose `files` are relative to the folder.
        only: the first-level sub-folders that the data set is made of; None: all.
        skip: files that cannot be read are no part of the data set.
        background: what transparent pixels are laid on.

    Raises:
        UslError: a file is not there, or a link leads out of the folder.
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
        assert index.files is not None
        assert index.dataset is not None
        self.root, self._only, self._skip, self._dataset = root.resolve(), only, skip, index.dataset
        self._background = background
        self._files = dict(zip(index.indices, index.files, strict=True))
        for file in index.files:
            path = self.root / file
            if not path.is_file():
                raise UslError(
                    f"{index.path}: {file} is not in {root}; give the folder the images were chosen from with --dir"
                )
            if not self._inside(path):
                raise UslError(
                    f"{path}: a link out of {root}, and nothing outside of that folder is shown; copy the image"
                )

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)

    @cached_property
    def _others(self) -> dict[int, str]:
        """All files of the data set; none if the folder has changed since, so that positions mean nothing."""
        try:
            found = folders.scan(self.root, self._only)
        except UslError:
            return {}
        if self._skip:
            found = found.without(set(unreadable(found)))
        same = folders.fingerprint_of(found.files, found.sizes) == self._dataset.fingerprint
        return dict(enumerate(found.files)) if same else {}

    def name(self, image: int) -> str:
        name = self._files.get(image) or self._others.get(image)
        if name is None:
            raise UslError(f"image {image} is not one that this server knows; start usl label again")
        return name

    def has(self, image: int) -> bool:
        if image in self._files:
            return True
        return image in self._others and self._inside(self.root / self._others[image])

    def pixels(self, image: int) -> NDArray[np.uint8]:
        path = self.root / self.name(image)
        return decode(read_file(path), str(path), 3, None, self._background)


class SourcePictures(Pictures):
    """Images that a data set holds in memory.

    Args:
        source: the data set.
    """

    def __init__(self, source: "ImageSource") -> None:
        self.source = source

    def name(self, image: int) -> str:
        return f"image {image} of {self.source.name}"

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
    if place is not None and not Path(place).expanduser().is_dir():
        raise UslError(f"{place}: no such folder; give the folder of the images of {index.path} with --dir")
    if place is None and name == "folder":
        raise UslError(f"{index.path}: nothing says where its images are; give their folder with --dir")
    places = folders.split_folders(name, place)
    if split not in places:
        raise UslError(f"{place}: has no split '{split}'; give the folder of the images of {index.path} with --dir")
    by_folder = settings.get("labels_file") is None and settings.get("classes") is None
    only = folders.class_names(name, places["train"], settings.get("class_list")) if by_folder else None
    skip, background = settings.get("on_error") == "skip", settings.get("background") or WHITE
    return FolderPictures(places[split], index, only, skip=skip, background=background)


def _from_memory(index: LabelIndex, place: str | None) -> Pictures:
    from usl_lightning.data.images.opening import open_source
    from usl_lightning.data.images.source import dataset_id

    assert index.dataset is not None
    source = open_source(index.dataset.name, index.dataset.split, dir=place)
    index.check(dataset_id(source))
    return SourcePictures(source)


def _data_settings(labels: Path) -> Mapping[str, Any]:
    """What the stage that wrote the label file had for its data; empty if the file was moved elsewhere."""
    config = labels.parent / "config.yaml"
    if not os.path.isfile(config):
        return {}
    data = load_yaml(config).get("data")
    return (data.get("init_args") or {}) if isinstance(data, Mapping) else {}
