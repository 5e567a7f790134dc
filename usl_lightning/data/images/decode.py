"""From the bytes of an image file to uint8 pixels of a given size. PIL and NumPy only.

A file is what its content says, whatever its name: one of `FORMATS`, and nothing else is tried. What becomes of each
kind:

- grey, colour, palette, CMYK, YCbCr, HSV and black-and-white: as PIL converts them; colour profiles are not applied.
- 16 bits a channel: grey is scaled to 8 bits, v·255/65535 rounded (12 bits: v·255/4095); colour, as PIL reads it.
- 32-bit integers above 65535, floating point, Lab: refused, because their range is not known.
- Transparency (alpha, a palette with it, a transparent colour) is laid on a background, at the file's own size.
- The image is turned as its EXIF (or XMP) orientation says, once. Of several frames, the first is taken.
- JPEG files are decoded at a half, quarter or eighth (in the DCT) as long as the shorter side stays at least
  twice what is wanted; the rest is bilinear, or bicubic if asked for, with antialiasing.
- An image of more than twice `PIL.Image.MAX_IMAGE_PIXELS` is refused by its header.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from usl_lightning.base.errors import UslError
from usl_lightning.data.images.rendering import WHITE, colour_of
from usl_lightning.data.images.walk import UnreadableImageError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
"""What a file may be, by PIL's names. None of them starts another program; PostScript would."""

Interpolation = Literal["bilinear", "bicubic"]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_CONVERTED = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_GREY = ("1", "L", "LA", "La")
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC = 0x0102, 0x0106  # of TIFF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BAND = 1 << 22
"""Pixels that are converted at a time: the largest image that PIL allows takes 0.7 GB with four bytes each."""

# Large images, damaged tags: two lines each that name no file, about what is read all the same.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Probe:
    """What an image file's header says.

    Attributes:
        height, width: in pixels, turned as it is to be shown.
        grey: whether it has one channel.
        alpha: whether pixels may be transparent.
    """

    height: int
    width: int
    grey: bool
    alpha: bool = False


def probe(content: bytes, where: str, background: str = WHITE) -> Probe:
    """Read the header alone.

    Args:
        content: the file.
        where: its name, for the message.
        background: what transparent pixels are laid on; on a colour they are no longer grey.

    Raises:
        UnreadableImageError: it is not an image.
    """
    with _damage(where), _opened(content, where) as image:
        width, height = image.size  # of TIFF, turned by that tag
        if _orientation(image) in (5, 6, 7, 8) and _tag(image, _ORIENTATION) is None:
            width, height = height, width
        alpha = image.has_transparency_data
        grey = image.mode in _GREY or _is_deep(image)
        return Probe(height, width, grey and not (alpha and len(set(colour_of(background))) > 1), alpha)


def decode(
    content: bytes,
    where: str,
    channels: int,
    size: int | None,
    background: str = WHITE,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.uint8]:
    """Decode, turn, resize and crop an image.

    Args:
        content: the file.
        where: its name, for the message.
        channels: 1 or 3.
        size: side in pixels: the largest centred square is resized to it; None: keep the size.
        background: what transparent pixels are laid on, see `colour_of`.
        interpolation: how it is resized, with antialiasing.

    Returns:
        uint8 [h, w, channels].

    Raises:
        UnreadableImageError: damaged, empty, larger than PIL allows, or of a kind that is refused.
    """
    with _damage(where):
        plain, orientation = _flat(content, where, "L" if channels == 1 else "RGB", size, background)
        if size is not None:
            plain = _square(plain, size, orientation, _RESAMPLING[interpolation])
        if orientation in _TRANSPOSE:
            plain = plain.transpose(_TRANSPOSE[orientation])
        pixels = np.asarray(plain)
    return pixels[:, :, None] if channels == 1 else pixels


def _flat(content: bytes, where: str, mode: str, size: int | None, background: str) -> tuple[Image.Image, int]:
    """The image without its transparency, before it is turned, and its orientation."""
    with _opened(content, where) as image:
        if size is not None:
            image.draft(None, (2 * size, 2 * size))
        image.load()  # TIFF is turned here, and its orientation taken away; PNG's may stand at its end
        orientation, eight_bit = _orientation(image), _eight_bit(image, content, where)
        if image.width * image.height <= _BAND:
            return _on_background(eight_bit(image, 0), mode, background), orientation
        if image.mode == mode and not image.has_transparency_data:
            return image, orientation
        whole, rows = Image.new(mode, image.size), max(1, _BAND // image.width)
        for top in range(0, image.height, rows):
            part = image.crop((0, top, image.width, min(image.height, top + rows)))
            whole.paste(_on_background(eight_bit(part, top), mode, background), (0, top))
        return whole, orientation


def _on_background(plain: Image.Image, mode: str, background: str) -> Image.Image:
    if plain.has_transparency_data:
        behind = Image.new("RGBA", plain.size, colour_of(background))
        plain = Image.alpha_composite(behind, plain.convert("RGBA"))
    return plain if plain.mode == mode else plain.convert(mode)


def is_transparent(content: bytes, where: str) -> bool:
    """Whether a pixel of the image shows something of what is behind it; an alpha channel alone may be opaque.

    Raises:
        UnreadableImageError: see `decode`.
    """
    with _damage(where), _opened(content, where) as image:
        image.load()
        eight_bit, rows = _eight_bit(image, content, where), max(1, _BAND // image.width)
        for top in range(0, image.height, rows):
            plain = eight_bit(image.crop((0, top, image.width, min(image.height, top + rows))), top)
            if not plain.has_transparency_data:
                return False
            if plain.convert("RGBA").getchannel("A").getextrema()[0] != 255:
                return True
        return False


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Whatever goes wrong is told of the file: PIL's plug-ins raise OSError, SyntaxError, struct.error, …"""
    try:
        yield
    except UslError:
        raise
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{where}: damaged image ({what})") from error


def _opened(content: bytes, where: str) -> ImageFile:
    if not content:
        raise UnreadableImageError(f"{where}: empty file, expected an image")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{where}: not an image file, or damaged at its beginning") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"{where}: too many pixels ({error})") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; damaged EXIF data counts as none."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _tag(image: Image.Image, number: int) -> Any:
    """A tag of a TIFF file; None if it has none, or is none."""
    return getattr(image, "tag_v2", {}).get(number)


# kinds of pixels -----------------------------------------------------------------------------------------


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def _eight_bit(image: ImageFile, content: bytes, where: str) -> Callable[[Image.Image, int], Image.Image]:
    """What gives a part of the loaded image, whose first row is given, 8 bits a channel or fewer.

    Its transparency is as PIL knows it. A part at a time takes little memory.
    """
    key, depth = image.info.get("transparency"), content[24] if image.format == "PNG" else 8
    if _is_deep(image):
        top, inverted = 4095 if _tag(image, _BITS) == (12,) else 65535, _tag(image, _PHOTOMETRIC) == 0
        return lambda part, row: _scaled(part, key, top, inverted, where)
    if image.mode not in _CONVERTED:
        why = " (floating point: their range is not known)" if image.mode == "F" else ""
        raise UnreadableImageError(f"{where}: pixels of mode {image.mode} are not read{why}; save it with 8 or 16 bits")
    if image.mode == "La":  # of TIFF: grey that was multiplied with alpha
        return lambda part, row: part.convert("LA")
    if image.mode == "L" and isinstance(key, int) and depth < 8:  # it is given in the file's own depth
        image.info["transparency"] = key * 255 // (2**depth - 1)
    if image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        lower = _lower_bytes(content)
        return lambda part, row: _with_colour_of_16_bits(part, lower, row, key)
    return lambda part, row: part


def _scaled(image: Image.Image, key: Any, top: int, inverted: bool, where: str) -> Image.Image:
    """16-bit grey as 8 bits, v·255/65535 rounded, with an alpha channel if there is a transparent value.

    Args:
        image: values from 0 to `top`.
        key: that of transparent pixels, if any.
        inverted: white is zero.
        where: its name, for the message.
    """
    found: NDArray[Any] = np.asarray(image)
    if found.min() < 0 or found.max() > top:
        raise UnreadableImageError(f"{where}: 32-bit values to {found.max()}; save it with 8 or 16 bits")
    values = found.astype(np.uint32)
    shown = top - values if inverted else values
    grey = Image.fromarray(((shown * 510 + top) // (2 * top)).astype(np.uint8))
    if not isinstance(key, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


def _lower_bytes(content: bytes) -> Image.Image:
    """Of a PNG of 16 bits a channel; PIL keeps the upper ones."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as lower:
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        lower.load()
        return lower


def _with_colour_of_16_bits(image: Image.Image, lower: Image.Image, row: int, key: tuple[int, ...]) -> Image.Image:
    """A part of a PNG of 16 bits a channel with a transparent colour, which has both bytes of each."""
    below = lower.crop((0, row, image.width, row + image.height))
    values = 256 * np.asarray(image).astype(np.int32) + np.asarray(below)
    hidden = (values == np.array(key)).all(2)
    return Image.merge("RGBA", (*image.split(), Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8))))


def _square(image: Image.Image, size: int, orientation: int, resampling: Image.Resampling) -> Image.Image:
    """The largest centred square at another size, as if the image was turned first: turning a small one is cheap.

    Of an odd rest, the right and the lower side have more. PIL resizes rows, then columns.
    """
    width, height = image.size
    side = min(width, height)
    left = (width - side + (orientation in (2, 3, 7, 8))) // 2
    top = (height - side + (orientation in (3, 4, 6, 7))) // 2
    if width != height:
        image = image.crop((left, top, left + side, top + side))
    if side != size and orientation in (5, 6, 7, 8):
        image = image.resize((side, size), resampling)
    return image if side == size else image.resize((size, size), resampling)
