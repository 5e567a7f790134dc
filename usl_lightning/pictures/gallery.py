"""Pictures of what was chosen, and of what came of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from usl_lightning.base.atomic import read_file
from usl_lightning.pictures.lettering import lettering
from usl_lightning.pictures.png import MADE_BY, save_png

if TYPE_CHECKING:  # a chain's picture is drawn without importing torch
    from torch import Tensor

TILE, CAPTION, PAD = 64, 18, 6
INK, PAPER, BAR = (32, 33, 36), (255, 255, 255), (66, 133, 244)


def chosen_strip(images: Tensor, captions: Sequence[str], path: Path, *, columns: int = 10) -> None:
    """Write the chosen images in order of choice, each with its caption, as a PNG.

    Args:
        images: uint8 [n, c, h, w].
        captions: n texts, the class names where known.
        path: the file.
        columns: tiles in a row.
    """
    sheet = Image.new("RGB", _sheet_size(len(images), columns), PAPER)
    for number, image in enumerate(images):
        sheet.paste(_tile(image), _corner(number, columns))
    _write_captions(sheet, captions, columns)
    save_png(sheet, path)


def caption_strip(path: Path, captions: Sequence[str], *, columns: int = 10) -> None:
    """Write other captions below the images of a picture that `chosen_strip` has made.

    Args:
        path: the file; if it is missing, or no such picture, nothing is done.
        captions, columns: as for `chosen_strip`.

    Raises:
        UslError: it cannot be written.
    """
    before = _opened(path)
    if before is None or before.size != _sheet_size(len(captions), columns):
        return
    sheet = before.copy()
    _write_captions(sheet, captions, columns)
    if sheet.tobytes() != before.tobytes():
        save_png(sheet, path)


def _opened(path: Path) -> Image.Image | None:
    """A picture of this package, in colour; None if it is none: a pipe is not waited for, PostScript starts nothing."""
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=["PNG"]) as file:
            return file.convert("RGB") if file.info.get("Software") == MADE_BY else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _write_captions(sheet: Image.Image, captions: Sequence[str], columns: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for number in range(len(captions)):
        x, y = _corner(number, columns)
        draw.rectangle((x - PAD, y + TILE, x + TILE + PAD, y + TILE + CAPTION), fill=PAPER)
    for number, caption in enumerate(captions):
        x, y = _corner(number, columns)
        font, words = lettering(caption, 12)
        draw.text((x + TILE / 2, y + TILE + 8), _fit(words, font), INK, font, anchor="mm")


def _corner(number: int, columns: int) -> tuple[int, int]:
    return PAD + number % columns * (TILE + PAD), PAD + number // columns * (TILE + CAPTION + PAD)


def _sheet_size(count: int, columns: int) -> tuple[int, int]:
    return min(columns, count) * (TILE + PAD) + PAD, -(-count // columns) * (TILE + CAPTION + PAD) + PAD


def _tile(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    small = max(picture.size) <= TILE
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _fit(text: str, font: Any) -> str:
    while len(text) > 1 and font.getlength(text) > TILE + PAD:
        text = text[:-2] + "…"
    return text


def summary_picture(results: Sequence[Mapping[str, Any]], strips: Sequence[Path], path: Path) -> None:
    """Write one picture of a chain: for each branch the images it labelled, and the accuracy they led to.

    Where no test images tell that, it is the estimate by the labels, with a line along its interval.

    Args:
        results: entries of `summary.json`'s `results`.
        strips: for each of them the PNG written by `chosen_strip`; if one is none, nothing is written.
        path: the file.
    """
    title, small = ImageFont.load_default(18), ImageFont.load_default(14)
    pictures = [picture for strip in strips if (picture := _opened(strip)) is not None]
    if not pictures or len(pictures) < len(strips):
        return
    width = max(picture.width for picture in pictures) + 2 * PAD
    heights = [picture.height + 64 for picture in pictures]
    sheet = Image.new("RGB", (width, sum(heights) + PAD), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = PAD
    for result, picture, height in zip(results, pictures, heights, strict=True):
        accuracy, words, interval = _accuracy(result)
        draw.text((2 * PAD, y), f"{result['budget']} labels chosen by {result['selection']}", INK, title)
        covered = f"{result['classes_covered']} of {len(result['class_counts'])} classes covered"
        draw.text((2 * PAD, y + 24), f"{covered}   {words}", INK, small)
        full = width - 4 * PAD
        draw.rectangle((2 * PAD, y + 46, 2 * PAD + full, y + 52), fill=(225, 228, 232))
        if accuracy:
            draw.rectangle((2 * PAD, y + 46, 2 * PAD + full * accuracy, y + 52), fill=BAR)
        if interval:
            low, high = interval
            draw.rectangle((2 * PAD + full * low, y + 48, 2 * PAD + full * high, y + 50), fill=INK)
        sheet.paste(picture, (PAD, y + 56))
        y += height
    save_png(sheet, path)


def _accuracy(result: Mapping[str, Any]) -> tuple[float | None, str, Sequence[float]]:
    """The accuracy of a branch as far as it is known, in words too, and the interval of an estimate."""
    tested, told, interval = (result.get(key) for key in ("test_accuracy", "estimated_accuracy", "estimated_interval"))
    if tested is not None:
        return tested, f"{result['method']}: {tested:.1%} of the test images right", ()
    if told is None or interval is None:
        return None, "", ()
    low, high = interval
    return told, f"{result['method']}: about {told:.0%} right by the labels alone ({low:.0%} to {high:.0%})", interval
