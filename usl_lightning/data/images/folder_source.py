"""Image folders as a source: decoded and resized when they are read."""

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of
from usl_lightning.data.images import folders
from usl_lightning.data.images.decode import Interpolation, Probe, decode, probe
from usl_lightning.data.images.folder_labels import list_folder
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.rendering import WHITE, rendering_of
from usl_lightning.data.images.sizes import other_size, probed
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.images.threads import map_in_order
from usl_lightning.data.images.unreadable import check_readable
from usl_lightning.data.images.walk import UnreadableImageError

log = logging.getLogger("usl_lightning")


class FolderSource(ImageSource):
    """Images of a folder, decoded when read; see `decode.py` for what becomes of each kind of file.

    Args:
        listing: the files, in order.
        labels: int64 [n], -1 where unknown.
        classes: names in label order.
        name, split: what the set is called.
        image_size: side in pixels; None: all files have one size, that of the first.
        channels: 1 or 3; None: 1 if all of 256 evenly spaced files are grey, else 3.
        background: what transparent pixels are laid on, see `colour_of`.
        problems: files left out, and why.
    """

    statistics_images = 4096

    def __init__(
        self,
        listing: FileList,
        labels: Tensor,
        classes: tuple[str, ...] = (),
        *,
        name: str,
        split: str,
        image_size: int | None = None,
        channels: int | None = None,
        background: str = WHITE,
        problems: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.files, self._listing = listing.root, listing.files, listing
        self.problems = dict(problems or {})
        self.labels, self.classes, self.skipped = labels, classes, tuple(self.problems)
        self.name, self.split, self.image_size, self.background = name, split, image_size, background
        self.rendering = rendering_of(background)
        self._interpolation: Interpolation = "bilinear"
        probes = self._probe(image_size is None, channels is None)
        self.channels = channels or (1 if all(p.grey for p in probes) else 3)
        self.height = image_size or probes[0].height
        self.width = image_size or probes[0].width

    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` as uint8 [b, c, h, w].

        Raises:
            UnreadableImageError: a file is damaged, gone, or has changed.
            UslError: one has another size where all must be equal.
        """
        images = torch.empty(len(indices), self.height, self.width, self.channels, dtype=torch.uint8)
        pixels = images.numpy()
        for slot, i in enumerate(indices.tolist()):
            content, where = self.content(i), self._listing.where(i)
            image = decode(content, where, self.channels, self.image_size, self.background, self._interpolation)
            if image.shape != pixels.shape[1:]:
                self._refuse_size(i, image.shape[0], image.shape[1])
            pixels[slot] = image
        return images.permute(0, 3, 1, 2).contiguous()

    def read_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """`read` of each batch, in order, on all cores."""
        return map_in_order(self.read, batches)

    def content_hashes(self, images: Iterable[int]) -> Iterator[str]:
        """`sha256:…` of the content of each image's file, in order, on all cores."""
        return map_in_order(lambda image: sha256_of(self.content(image)), images)

    def resized(self, size: int, interpolation: Interpolation) -> "FolderSource":
        other = copy.copy(self)
        other.image_size = other.height = other.width = size
        other.channels, other._interpolation = 3, interpolation
        return other

    def _fingerprint(self) -> str:
        return folders.fingerprint_of(self._listing.files, self._listing.sizes)

    def content(self, i: int) -> bytes:
        """The bytes of a file.

        Raises:
            UnreadableImageError: it cannot be read, or has changed since the folder was listed.
        """
        content, size = self._listing.read(i), self._listing.sizes[i]
        if len(content) != size:
            folders.drop_index(self.root, self._listing.only)
            raise UnreadableImageError(
                f"{self._listing.where(i)}: changed since the folder was listed ({size} bytes then,"
                f" {len(content)} now); start again"
            )
        return content

    def _probe(self, sizes: bool, colours: bool) -> list[Probe]:
        """The headers of evenly spaced files, as far as they are needed."""
        if not sizes and not colours:
            return []
        picks = probed(len(self))
        probes = [probe(self.content(i), self._listing.where(i), self.background) for i in picks]
        for i, found in zip(picks, probes, strict=True):
            if sizes and (found.height, found.width) != (probes[0].height, probes[0].width):
                self.height, self.width = probes[0].height, probes[0].width
                self._refuse_size(i, found.height, found.width)
        return probes

    def _refuse_size(self, i: int, height: int, width: int) -> None:
        here, first = self._listing.where(i), self._listing.where(0)
        raise UslError(other_size(here, (width, height), first, (self.width, self.height)))


# opening -------------------------------------------------------------------------------------------------


def open_folder(
    name: str,
    split: str,
    *,
    dir: str | None,
    image_size: int | None = None,
    channels: int | None = None,
    labels_file: str | None = None,
    class_list: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    classes: Sequence[str] | None = None,
    background: str = WHITE,
) -> FolderSource:
    """Open one split of a set of image files; the arguments are those of `open_source` and `Looks`.

    Raises:
        UslError: see `open_source`.
    """
    readable = partial(check_readable, on_error=on_error)
    found = list_folder(
        name, split, dir=dir, labels_file=labels_file, class_list=class_list, classes=classes, readable=readable
    )
    return FolderSource(
        found.listing,
        torch.tensor(found.labels, dtype=torch.int64),
        found.classes,
        name=name,
        split=split,
        image_size=image_size,
        channels=channels,
        background=background,
        problems=found.problems,
    )


def open_images(
    dir: str,
    *,
    image_size: int | None,
    channels: int | None,
    on_error: Literal["fail", "skip"],
    background: str = WHITE,
) -> FolderSource:
    """All images below a folder, nested or flat, without labels; the arguments are those of `open_source`.

    Raises:
        UslError: no such folder, no image in it, or an unreadable one.
    """
    listing, problems = check_readable(folders.scan(Path(os.path.expanduser(dir))), on_error)
    return FolderSource(
        listing,
        torch.full((len(listing.files),), -1),
        name="folder",
        split="all",
        image_size=image_size,
        channels=channels,
        background=background,
        problems=problems,
    )
