"""Single image files as a source."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from usl_lightning.base.errors import UslError
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.rendering import WHITE


def open_files(
    paths: Sequence[str | Path], *, image_size: int | None, channels: int | None, background: str = WHITE
) -> FolderSource:
    """Image files, wherever they are, in the order given, without labels; the arguments are those of `open_source`.

    Raises:
        UslError: there is none, or one is missing.
    """
    files = tuple(os.path.abspath(os.path.expanduser(path)) for path in paths)
    if not files:
        raise UslError("no image is given; expected paths of image files")
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise UslError(f"{missing[0]}: no such image file")
    listing = FileList(Path(os.sep), files, tuple(os.path.getsize(file) for file in files), {})
    return FolderSource(
        listing,
        torch.full((len(files),), -1),
        name="files",
        split="all",
        image_size=image_size,
        channels=channels,
        background=background,
    )
