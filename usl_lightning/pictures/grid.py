"""Pictures of images and their views, drawn with Pillow alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from usl_lightning.pictures.png import save_png

if TYPE_CHECKING:
    from PIL import Image as PILImage

_TILE = 64  # the least side of a tile in pixels
_GAP = 4
_TITLE = 16
_BACKGROUND, _INK = (255, 255, 255), (32, 32, 32)


def view_grid(
    images: Tensor,
    views: Mapping[str, Sequence[Tensor]],
    path: str | Path,
    *,
    scale: int | None = None,
    command: str | None = None,
) -> None:
    """Write a PNG with a row an image: the original, then its views, each group of columns under its name.

    Args:
        images: uint8 [n, c, h, w], the originals, c = 1 or 3.
        views: for each name, the views drawn of all images: tensors [n, c, h', w'], float in [0, 1] or uint8.
        path: the file to write.
        scale: how many times to magnify, each pixel a square; None makes every tile at least 64 pixels.
        command: see `save_png`.

    Raises:
        ValueError: there are no images, or a view is not of as many images.
        UslError: the file cannot be written.
    """
    if len(images) == 0:
        raise ValueError("view_grid got no images")
    groups = {"original": [images], **views}
    for name, tensors in groups.items():
        for tensor in tensors:
            if len(tensor) != len(images):
                raise ValueError(f"view {name!r} is of {len(tensor)} images; expected {len(images)}")
    columns = [[_tile(image, scale) for image in tensor] for tensors in groups.values() for tensor in tensors]
    titles = [name if i == 0 else "" for name, tensors in groups.items() for i in range(len(tensors))]
    save_png(_paste(columns, titles), path, command)


def contact_sheet(images: Tensor, path: str | Path, *, columns: int = 8, command: str | None = None) -> None:
    """Write images row by row as a PNG, in their pixels; small ones are magnified, each pixel a square.

    Args:
        images: uint8 [n, c, h, w], c = 1 or 3, at least one.
        path: the file to write.
        columns: images in a row.
        command: see `save_png`.

    Raises:
        UslError: the file cannot be written.
    """
    tiles = [_tile(image, None) for image in images]
    columns = min(columns, len(tiles))
    blank = tiles[0].copy()
    blank.paste(_BACKGROUND, (0, 0, *blank.size))
    tiles += [blank] * (-len(tiles) % columns)
    save_png(_paste([tiles[i::columns] for i in range(columns)], [""] * columns), path, command)


def _tile(image: Tensor, scale: int | None) -> "PILImage.Image":
    """One image [c, h, w], float in [0, 1] or uint8, as an RGB tile, magnified without smoothing."""
    from PIL import Image

    if image.dtype != torch.uint8:
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    h, w = image.shape[1:]
    pixels = image.detach().cpu().expand(3, h, w).permute(1, 2, 0).contiguous().numpy()
    times = max(1, math.ceil(_TILE / min(h, w))) if scale is None else scale
    return Image.fromarray(pixels).resize((w * times, h * times), Image.Resampling.NEAREST)


def _paste(columns: Sequence[Sequence["PILImage.Image"]], titles: Sequence[str]) -> "PILImage.Image":
    """Tiles in columns, each with a title above it; a title may reach over the untitled columns to its right."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    widths = [max(tile.width for tile in column) for column in columns]
    rooms = _rooms(widths, titles)
    for i, room in rooms.items():
        widths[i] += max(0, math.ceil(font.getlength(titles[i])) - room)
    heights = [max(tile.height for tile in row) for row in zip(*columns, strict=True)]
    sheet = Image.new(
        "RGB",
        (sum(widths) + _GAP * (len(widths) + 1), _TITLE + sum(heights) + _GAP * (len(heights) + 1)),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for column, title, width in zip(columns, titles, widths, strict=True):
        draw.text((left, 2), title, fill=_INK, font=font)
        top = _TITLE + _GAP
        for tile, height in zip(column, heights, strict=True):
            sheet.paste(tile, (left, top))
            top += height + _GAP
        left += width + _GAP
    return sheet


def _rooms(widths: Sequence[int], titles: Sequence[str]) -> dict[int, int]:
    """For each column with a title, the pixels from its left edge to the next title."""
    starts = [i for i, title in enumerate(titles) if title]
    ends = [*starts[1:], len(widths)][: len(starts)]
    return {start: sum(widths[start:end]) + _GAP * (end - start - 1) for start, end in zip(starts, ends, strict=True)}
