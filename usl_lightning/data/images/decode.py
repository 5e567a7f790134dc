"""From the bytes of an image file to uint8 pixels of a given size. PIL and NumPy only.

What becomes of each kind of file:

- grey, colour, palette, CMYK, YCbCr, HSV and black-and-white: as PIL converts them; transparency is dropped.
- 16 bits a channel: grey is scaled to 8 bits, v·255/65535 rounded; colour, as PIL reads it.
- 32-bit integers, floating point, Lab: refused, because their range is not known.
- EXIF orientation is applied. Of several frames, the first is taken.
- JPEG files are decoded at a half, quarter or eighth (in the DCT) as long as the shorter side stays at least
  twice what is wanted; the rest is bilinear with antialiasing.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from usl_lightning.base.errors import UslError

VERSION = 1
"""Raised when the same file would give other pixels; decoded caches are then made again."""

_CONVERTED = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_GREY = ("1", "L", "LA", "La")
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(UslError):
    """An image file that cannot be decoded, or is of a kind that is refused."""


@dataclass(frozen=True)
class Probe:
    """What an image file's header says: size after EXIF rotation, and whether it is grey."""

    height: int
    width: int
    grey: bool


def probe(content: bytes, where: str) -> Probe:
    """Read the header alone.

    Args:
        content: the file.
        where: its name, for the message.

    Raises:
        UnreadableImageError: it is not an image.
    """
    with _opened(content, where) as image:
        width, height = image.size
        if _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        return Probe(height, width, image.mode in _GREY or _is_deep(image))


def decode(content: bytes, where: str, channels: int, size: int | None) -> NDArray[np.uint8]:
    """Decode, resize and crop an image.

    Args:
        content: the file.
        where: its name, for the message.
        channels: 1 or 3.
        size: side in pixels: the largest centred square is resized to it; None: keep the size.

    Returns:
        uint8 [h, w, channels].

    Raises:
        UnreadableImageError: damaged, empty, larger than PIL allows, or of a kind that is refused.
    """
    with _opened(content, where) as image:
        try:
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            orientation = _orientation(image)
            plain = _eight_bit(image, where, "L" if channels == 1 else "RGB")
            if size is not None:
                plain = _square(plain, size)
            if orientation in _TRANSPOSE:
                plain = plain.transpose(_TRANSPOSE[orientation])
            pixels = np.asarray(plain)
        except UslError:
            raise
        except Exception as error:  # PIL's plug-ins raise OSError, SyntaxError, struct.error, ValueError, …
            raise UnreadableImageError(f"{where}: damaged image ({error})") from error
    return pixels[:, :, None] if channels == 1 else pixels


def _opened(content: bytes, where: str) -> ImageFile:
    if not content:
        raise UnreadableImageError(f"{where}: empty file, expected an image")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{where}: not an image file, or damaged at its beginning") from error
    except Exception as error:
        raise UnreadableImageError(f"{where}: damaged image ({error})") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; damaged EXIF data counts as none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def _eight_bit(image: Image.Image, where: str, mode: str) -> Image.Image:
    if _is_deep(image):
        return Image.fromarray(_scaled(image, where)).convert(mode)
    if image.mode not in _CONVERTED:
        raise UnreadableImageError(f"{where}: images of mode {image.mode} are not supported; save it as PNG")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what PIL asks for; the colours are the same
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """16-bit grey to 8 bits, v·255/65535 rounded."""
    values: NDArray[Any] = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError(f"{where}: 32-bit values to {values.max()}; save it with 8 or 16 bits")
    return ((values + 128) // 257).astype(np.uint8)


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if width != height:
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BILINEAR)
