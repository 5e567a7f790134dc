"""Where images come from: one interface over arrays in memory, image folders and decoded caches."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from usl_lightning.data.images.decode import Interpolation
from usl_lightning.labels.entries import DatasetId

_CHUNK = 1024  # images at a time in whole-set passes


class ImageSource(ABC):
    """One split of a data set: n images of one size, as uint8.

    A source can be pickled, and read in worker processes.

    Attributes:
        name: the data set, `"digits"`.
        split: `"train"`, `"test"`, …
        classes: names in label order; empty if unknown.
        labels: int64 [n] on the CPU, -1 where unknown.
        channels: 1 or 3.
        height, width: in pixels.
        files: paths relative to the folder, with `/`; None unless the images are files.
        skipped: files left out because they cannot be read (`on_error="skip"`).
        rendering: how files become pixels, where the fingerprint, which is of the files, does not say; "" in memory.
        statistics_images: how many images `statistics` looks at, at most.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: Tensor
    channels: int
    height: int
    width: int
    files: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    rendering: str = ""
    statistics_images: int = 50_000

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 [b]) as uint8 [b, c, h, w] on the CPU."""

    def read_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """`read` of each batch of indices, in order: for passes over many images outside worker processes."""
        return map(self.read, batches)

    def content_hashes(self, images: Iterable[int]) -> Iterator[str]:
        """`sha256:…` of the content of each image's file, in order; for sources that have `files`.

        Raises:
            UslError: one cannot be read, or has changed since the folder was listed.
        """
        raise NotImplementedError(f"{self.name}: the images are no files")

    @abstractmethod
    def resized(self, size: int, interpolation: Interpolation) -> "ImageSource":
        """The same images in another size: RGB squares, made from the originals, not from those of this size.

        Args:
            size: side in pixels; the largest centred square of each image is resized to it, when it is read.
            interpolation: how, with antialiasing.
        """

    @abstractmethod
    def _fingerprint(self) -> str: ...

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:…` of the images, labels excluded.

        In memory: the shape and type of the set as read, as in `b"1437,1,8,8,uint8"`, then its pixels in
        order. Folders: each relative path (UTF-8, `/`, sorted by code point), a NUL, its size in bytes as
        decimal digits, a NUL. Neither depends on `image_size` or `channels`.
        """
        return self._fingerprint()

    @property
    def nbytes(self) -> int:
        """Bytes of all images as uint8."""
        return len(self) * self.channels * self.height * self.width

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, standard deviation) of each channel, of pixels in [0, 1].

        Over all images, or `statistics_images` evenly spaced ones if there are more. The sums are of
        integers, so the result is exact and the same everywhere.
        """
        n = min(len(self), self.statistics_images)
        picks = torch.arange(n) * len(self) // n
        total = torch.zeros(self.channels, dtype=torch.int64)
        squares = torch.zeros(self.channels, dtype=torch.int64)
        levels = torch.arange(256)
        for images in self.read_batches(torch.split(picks, 256)):
            counts = _histogram(images)
            total += counts @ levels
            squares += counts @ levels.square()
        pixels = n * self.height * self.width
        mean = total.double() / pixels
        variance = (squares.double() / pixels - mean.square()).clamp_min(0)
        return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())


def _histogram(images: Tensor) -> Tensor:
    """int64 [c, 256]: how often each value occurs in each channel of uint8 [b, c, h, w]."""
    return torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])])


def dataset_id(source: ImageSource) -> DatasetId:
    """What a label index stores to know its data set again."""
    return DatasetId(source.name, source.split, len(source), source.fingerprint)


class ArraySource(ImageSource):
    """Images held in memory.

    Args:
        images: uint8 [n, c, h, w], kept in `.images`.
        labels: int64 [n], -1 where unknown.
        classes: names in label order.
        name, split: what the set is called.
        fingerprint: that of the set as read, if `images` was resized or recoloured since.
        originals: then reads the set again, as it was.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: tuple[str, ...] = (),
        *,
        name: str,
        split: str,
        fingerprint: str | None = None,
        originals: Callable[[], Tensor] | None = None,
    ) -> None:
        self.images = images.contiguous()
        self.labels = labels
        self.classes = classes
        self.name = name
        self.split = split
        self.channels, self.height, self.width = images.shape[1:]
        self._original, self._originals = fingerprint, originals

    def read(self, indices: Tensor) -> Tensor:
        return self.images[indices]

    def resized(self, size: int, interpolation: Interpolation) -> "ResizedSource":
        original = self
        if self._originals is not None:
            original = copy.copy(self)
            original.images, original._originals = self._originals(), None
        return ResizedSource(original, size, interpolation)

    def begins_with(self, other: DatasetId) -> bool:
        """Whether it is a sum of splits, the first of them this one: STL-10's `train+unlabeled` begins with `train`."""
        if other.name != self.name or not self.split.startswith(f"{other.split}+") or other.size >= len(self):
            return False
        images = self.images if self._originals is None else self._originals()
        return array_fingerprint(images[: other.size]) == other.fingerprint

    def _fingerprint(self) -> str:
        return self._original or array_fingerprint(self.images)


class ResizedSource(ImageSource):
    """Images in memory as RGB squares of another size, in which all at once might not fit: resized when read.

    Args:
        source: the images as they are.
        size, interpolation: see `ImageSource.resized`.
    """

    def __init__(self, source: ArraySource, size: int, interpolation: Interpolation) -> None:
        self.name, self.split, self.classes, self.labels = source.name, source.split, source.classes, source.labels
        self._source, self._interpolation = source, interpolation
        self.channels, self.height, self.width = 3, size, size

    def read(self, indices: Tensor) -> Tensor:
        resized = convert_images(self._source.read(indices), self.height, None, self._interpolation)
        return convert_images(resized, None, 3)

    def resized(self, size: int, interpolation: Interpolation) -> "ResizedSource":
        return ResizedSource(self._source, size, interpolation)

    def _fingerprint(self) -> str:
        return self._source.fingerprint


def array_fingerprint(images: Tensor) -> str:
    """The fingerprint of uint8 [n, c, h, w]; see `ImageSource.fingerprint`."""
    digest = hashlib.sha256((",".join(map(str, images.shape)) + ",uint8").encode("ascii"))
    for chunk in torch.split(images, _CHUNK):
        digest.update(chunk.contiguous().numpy().data)
    return "sha256:" + digest.hexdigest()


def convert_images(
    images: Tensor, image_size: int | None, channels: int | None, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """uint8 [n, c, h, w] in another size or number of channels; the same tensor if nothing changes.

    The largest centred square is resized to `image_size` (antialiased, as PIL), that is, the shorter side is resized
    and the centre cropped.
    Colour to grey is PIL's luma (ITU-R 601-2); grey to colour repeats the channel.
    """
    if channels not in (None, images.shape[1]):
        images = images.expand(-1, 3, -1, -1) if channels == 3 else _luma(images)
    if image_size is None or tuple(images.shape[2:]) == (image_size, image_size):
        return images
    return torch.cat([_resize(chunk, image_size, interpolation) for chunk in torch.split(images, _CHUNK)])


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    chunks = torch.split(images, _CHUNK)
    grey = [((c.int() * weights).sum(1, keepdim=True) + 0x8000) >> 16 for c in chunks]
    return torch.cat([g.to(torch.uint8) for g in grey])


def _resize(images: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    return torch.nn.functional.interpolate(square, (size, size), mode=interpolation, antialias=True)
