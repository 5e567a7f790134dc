"""Decoded images of a folder in one file, mapped into memory.

The file is a header of 4,096 bytes (JSON, padded with spaces: what it was made from) and then the pixels,
uint8 [n, c, h, w]. It is made under another name and renamed, so it is whole or not there; a lock lets one
process make it while the others wait. Its name says which folder, split, size, channels and background it holds; its
header has the fingerprint and how files become pixels, so a file made from other images, or otherwise, is noticed and
made again in its place.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usl_lightning.base.atomic import atomic_path, open_lock
from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import Bar
from usl_lightning.data.images.decode import Interpolation
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.rendering import WHITE, colour_of
from usl_lightning.data.images.source import ImageSource

_HEADER = 4096
_BATCH = 64  # images decoded at a time


class CachedSource(ImageSource):
    """A folder whose decoded images are kept in one file.

    Args:
        source: the folder.
        cache: the folder to keep the file in; it is made if need be.

    Raises:
        UslError: an image cannot be decoded, or the file cannot be written.
    """

    statistics_images = FolderSource.statistics_images

    def __init__(self, source: FolderSource, cache: str) -> None:
        self.name, self.split, self.classes = source.name, source.split, source.classes
        self.labels, self.files, self.skipped = source.labels, source.files, source.skipped
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self.rendering = source.rendering
        self._source = source
        self.path = _path(source, Path(os.path.expanduser(cache)))
        header = _header(source)
        if not _is_current(self.path, header, source.nbytes):
            _build(source, self.path, header)
        self._pixels: NDArray[np.uint8] | None = None

    def read(self, indices: Tensor) -> Tensor:
        if self._pixels is None:  # each process maps the file itself
            shape = (len(self), self.channels, self.height, self.width)
            self._pixels = np.memmap(self.path, dtype=np.uint8, mode="r", offset=_HEADER, shape=shape)
        return torch.from_numpy(self._pixels[indices.numpy()])

    def content_hashes(self, images: Iterable[int]) -> Iterator[str]:
        return self._source.content_hashes(images)

    def resized(self, size: int, interpolation: Interpolation) -> FolderSource:
        return self._source.resized(size, interpolation)

    def _fingerprint(self) -> str:
        return self._source.fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


def _path(source: FolderSource, cache: Path) -> Path:
    key = [os.path.realpath(source.root), source.split, source.channels, source.height, source.width]
    if colour_of(source.background) != colour_of(WHITE):
        key.append(source.background)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache / f"{source.name}-{source.split}-{source.width}x{source.height}x{source.channels}-{digest}.u8"


def _header(source: FolderSource) -> bytes:
    about = {
        "format": "usl-decoded-cache",
        "rendering": source.rendering,
        "fingerprint": source.fingerprint,
        "shape": [len(source), source.channels, source.height, source.width],
        "made_from": os.path.realpath(source.root)[-2000:],
    }
    return json.dumps(about).encode().ljust(_HEADER - 1) + b"\n"


def _is_current(path: Path, header: bytes, nbytes: int) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(_HEADER) == header and os.fstat(file.fileno()).st_size == _HEADER + nbytes
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UslError(f"{path}: cannot be used ({error.strerror}); give another --data.cache") from error


def _build(source: FolderSource, path: Path, header: bytes) -> None:
    with _locked(path):
        if _is_current(path, header, source.nbytes):  # another process made it meanwhile
            return
        _check_space(path, source.nbytes)
        batches = torch.split(torch.arange(len(source)), _BATCH)
        bar = Bar(total=len(source), desc="decoding images once", unit="img", disable=None, leave=False)
        with atomic_path(path) as temporary, open(temporary, "wb") as file, bar:
            file.write(header)
            # Plain writes, so that a full disk is an error here, not a fault when a mapped page is flushed.
            for images in source.read_batches(batches):
                file.write(images.numpy().data)
                bar.update(len(images))


def _check_space(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < nbytes + _HEADER:
        raise UslError(
            f"{path.parent}: {nbytes / 1e9:.1f} GB are needed for the decoded images and {free / 1e9:.1f} GB"
            " are free; give another --data.cache or a smaller --data.image_size"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, or go on without where the file system or platform has none.

    The system frees the lock when its holder ends, however it ends.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(path.with_name(path.name + ".lock"))
    except OSError as error:
        raise UslError(f"{path.parent}: cannot be used ({error.strerror}); give another --data.cache") from error
    with lock:
        _lock(lock.fileno())
        yield


def _lock(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
