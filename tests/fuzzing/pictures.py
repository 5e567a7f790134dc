"""Readers of images: every documented format, alone and in a folder; and what is kept of decoded ones."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from fuzzing import Reader
from fuzzing.containers import IMAGE
from fuzzing.mutations import BYTES
from usl_lightning.data.images.decode import decode, is_transparent, probe
from usl_lightning.data.images.opening import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
LARGE = 10_000_000
"""Pixels of an image that is decoded once."""

SMOOTH = Image.linear_gradient("L").resize((16, 12))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tag(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _seeds(kind: str) -> list[bytes]:
    colour, alpha = Image.fromarray(PIXELS[..., :3]), Image.fromarray(PIXELS)
    palette, deep = colour.quantize(16), Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    made: dict[str, Callable[[], list[bytes]]] = {
        "JPEG": lambda: [
            _encoded(colour, kind, exif=_tag()), _encoded(SMOOTH, kind, progressive=True),
            _encoded(colour.convert("CMYK"), kind), _encoded(colour, "MPO", save_all=True, append_images=[colour]),
        ],
        "PNG": lambda: [
            _encoded(colour, kind, exif=_tag()), _encoded(alpha, kind), _encoded(deep, kind, transparency=257),
            _encoded(palette, kind, transparency=bytes([0, 255, 128])), _encoded(SMOOTH.convert("1"), kind),
            _encoded(colour, kind, transparency=(1, 2, 3)),
            _encoded(colour, kind, save_all=True, append_images=[colour]),
        ],
        "PPM": lambda: [
            _encoded(colour, kind), _encoded(SMOOTH, kind), _encoded(SMOOTH.convert("1"), kind), _encoded(deep, kind),
            b"P3\n# x\n2 2\n255\n1 2 3 4 5 6 7 8 9 10 11 12\n",
        ],
        "BMP": lambda: [_encoded(colour, kind), _encoded(palette, kind), _encoded(alpha, kind), _encoded(SMOOTH, kind)],
        "TIFF": lambda: [
            _encoded(colour, kind, exif=_tag()), _encoded(alpha, kind, compression="tiff_lzw"), _encoded(deep, kind),
            _encoded(SMOOTH.convert("1"), kind, compression="group4"), _encoded(palette, kind),
            _encoded(colour, kind, compression="tiff_adobe_deflate"), _encoded(colour, kind, compression="jpeg"),
        ],
        "WEBP": lambda: [
            _encoded(colour, kind, exif=_tag()), _encoded(alpha, kind, lossless=True),
            _encoded(alpha, kind, save_all=True, append_images=[alpha]),
        ],
        "GIF": lambda: [
            _encoded(palette, kind), _encoded(palette, kind, transparency=3), _encoded(SMOOTH, kind, interlace=1),
            _encoded(palette, kind, save_all=True, append_images=[palette]),
        ],
        "AVIF": lambda: [_encoded(colour, kind, exif=_tag(), speed=10), _encoded(alpha, kind, speed=10)],
    }  # fmt: skip
    return made[kind]()


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data
        return image


def read_image(path: Path) -> None:
    """Alone, at its own size, small, and as the only one of a folder; as PIL has it where that is beyond doubt."""
    content, where = path.read_bytes(), str(path)
    header = probe(content, where)
    pixels = decode(content, where, 3, None)
    assert pixels.shape == (header.height, header.width, 3), (pixels.shape, header)
    assert pixels.dtype == np.uint8
    if header.height * header.width > LARGE:
        return
    assert decode(content, where, 1, 8).shape == (8, 8, 1)
    shown = is_transparent(content, where)
    assert header.alpha or not shown
    image: Image.Image = Image.open(io.BytesIO(content))
    image.load()
    if image.mode in ("L", "RGB", "RGBA") and not shown and "transparency" not in image.info:
        assert np.array_equal(pixels, np.asarray(_turned(image).convert("RGB"))), "not as PIL shows it"
    source = open_source("folder", "train", dir=str(path.parent), image_size=None)
    read = source.read(torch.tensor([0]))
    assert np.array_equal(read[0].permute(1, 2, 0).expand(-1, -1, 3).numpy(), pixels) or source.channels == 1


# the decoded cache ---------------------------------------------------------------------------------------


def _opened(folder: Path) -> Any:
    return open_source("folder", "train", dir=str(folder / "images"), image_size=8, cache=str(folder / "cache"))


def _cache(folder: Path) -> Path:
    (folder / "images").mkdir()
    for number in range(3):
        Image.fromarray(PIXELS[..., number : number + 1].repeat(3, 2)).save(folder / "images" / f"{number}.png")
    path: Path = _opened(folder).path
    return path


def read_cache(path: Path) -> None:
    """A cache that is not what it should be is made again."""
    pixels = path.read_bytes()[4096:]
    source = _opened(path.parents[1])
    read = source.read(torch.arange(3))
    assert read.shape == (3, 3, 8, 8)
    assert read.numpy().tobytes() == pixels or source.path.stat().st_size == 4096 + read.numel()


READERS = (
    *(
        Reader(f"image_{kind.lower()}", ".png", partial(_seeds, kind), read_image, IMAGE)
        for kind in ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
    ),
    Reader("decoded_cache", ".u8", None, read_cache, BYTES, _cache),
)
