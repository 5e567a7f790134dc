"""Decoding: transparency, orientation, which formats are opened, and what becomes of each kind of pixels."""

import io
import os
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from usl_lightning.base.errors import UslError
from usl_lightning.data.images import decode as decode_module
from usl_lightning.data.images.decode import FORMATS, decode, is_transparent, probe
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.rendering import colour_of
from usl_lightning.data.images.walk import UnreadableImageError
from usl_lightning.data.modules import ImageData
from usl_lightning.stage.identity import identity_fields

rng = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(channels: int, width: int = 10, height: int = 7) -> Image.Image:
    """Noise in L, LA, RGB or RGBA; a quarter is wholly transparent, a quarter wholly opaque."""
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if channels in (2, 4):
        pixels[: height // 2, : width // 2, -1] = 0
        pixels[height // 2 :, width // 2 :, -1] = 255
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def viewed(content: bytes, background: str = "white") -> np.ndarray:
    """What a viewer shows, by PIL's own means: uint8 [h, w, 3]."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB"))


# transparency --------------------------------------------------------------------------------------------


def palette(image: Image.Image, **options: object) -> bytes:
    return encoded(image.convert("RGB").quantize(8), **options)


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(noise(1))
    return image


TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "PNG RGBA": lambda: encoded(noise(4), "PNG"),
    "PNG LA": lambda: encoded(noise(2), "PNG"),
    "PNG palette, alphas": lambda: palette(noise(3), kind="PNG", transparency=bytes([0, 255, 128, 7])),
    "PNG palette, an entry": lambda: palette(noise(3), kind="PNG", transparency=3),
    "PNG grey, a value": lambda: encoded(Image.linear_gradient("L"), "PNG", transparency=9),
    "PNG colour, a value": lambda: encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "PNG 1 bit": lambda: encoded(noise(1).convert("1"), "PNG", transparency=0),
    "GIF": lambda: palette(noise(3), kind="GIF", transparency=3),
    "WebP": lambda: encoded(noise(4), "WEBP", lossless=True, exact=True),
    "TIFF RGBA": lambda: encoded(noise(4), "TIFF"),
    "TIFF LA": lambda: encoded(noise(2), "TIFF"),
    "TIFF PA": lambda: encoded(with_alpha(noise(3).quantize(8)), "TIFF"),
    "AVIF": lambda: encoded(noise(4, 16, 16), "AVIF"),
}  # fmt: skip


@pytest.mark.parametrize("background", ["white", "black", "#1e90ff"])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_laid_on_the_background(kind: str, background: str) -> None:
    content = TRANSPARENT[kind]()
    expected = viewed(content, background)
    assert np.array_equal(decode(content, "x", 3, None, background), expected)
    grey = np.asarray(Image.fromarray(expected).convert("L"))
    assert np.array_equal(decode(content, "x", 1, None, background)[..., 0], grey)
    assert probe(content, "x").alpha
    assert is_transparent(content, "x")


def test_grey_that_was_multiplied_with_alpha() -> None:
    """TIFF says so by 1 in place of 2 in the tag of its further channel."""
    image = np.array([[[0, 0], [64, 128], [128, 128], [200, 255]]], np.uint8)
    content = encoded(Image.fromarray(image), "TIFF")
    tag, other = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert content.count(tag) == 1
    content = content.replace(tag, other)
    for channels in (1, 3):
        assert (decode(content, "x", channels, None) == np.array([255, 191, 255, 200])[None, :, None]).all()
    assert probe(content, "x").grey
    assert is_transparent(content, "x")


def test_the_default_is_white_and_what_is_hidden_leaves_no_trace() -> None:
    shown, hidden = np.full((9, 9, 4), 255, np.uint8), rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)
    hidden[..., 3] = 0
    for size in (None, 4):
        assert (decode(encoded(Image.fromarray(hidden), "PNG"), "x", 3, size) == 255).all()
    half = np.concatenate([shown, hidden])
    assert (decode(encoded(Image.fromarray(half), "PNG"), "x", 3, 5) == 255).all()


def png(depth: int, kind: int, row: bytes, width: int, *chunks: tuple[bytes, bytes], rows: int = 1) -> bytes:
    """A PNG of one row, or more after each other, by its definition."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, rows, depth, kind, 0, 0, 0))
    body = b"".join(chunk(*each) for each in chunks)
    size = len(row) // rows
    raw = b"".join(b"\0" + row[start : start + size] for start in range(0, len(row), size))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "row"), [(1, b"\x40"), (2, b"\x1b"), (4, b"\x05\xaf"), (8, b"\x00\x05\x55\xff")])
def test_a_transparent_grey_value_is_in_the_depth_of_the_file(depth: int, row: bytes) -> None:
    values = np.unpackbits(np.frombuffer(row, np.uint8)).reshape(-1, depth)[: 2 if depth == 1 else 4]
    levels = values @ (1 << np.arange(depth)[::-1])
    for key in range(2**depth):
        content = png(depth, 0, row, len(levels), (b"tRNS", struct.pack(">H", key)))
        expected = np.where(levels == key, 255, levels * 255 // (2**depth - 1))
        assert decode(content, "x", 1, None)[0, :, 0].tolist() == expected.tolist(), key


def test_a_transparent_value_of_16_bits() -> None:
    levels = np.array([0, 0x1234, 0x1235, 0xFFFF])
    grey = png(16, 0, struct.pack(">4H", *levels), 4, (b"tRNS", struct.pack(">H", 0x1234)))
    assert decode(grey, "x", 1, None)[0, :, 0].tolist() == [0, 255, 18, 255]
    assert decode(grey, "x", 1, None, "black")[0, :, 0].tolist() == [0, 0, 18, 255]
    colours = [(0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9AFF)]
    row = b"".join(struct.pack(">3H", *colour) for colour in colours)
    colour = png(16, 2, row, 3, (b"tRNS", struct.pack(">3H", *colours[0])))
    assert decode(colour, "x", 3, None)[0].tolist() == [[255] * 3, [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9A]]


def test_16_bits_with_alpha() -> None:
    for kind, channels in ((4, 2), (6, 4)):
        values = rng.integers(0, 65536, (5, channels))
        content = png(16, kind, values.astype(">u2").tobytes(), 5)
        assert np.array_equal(decode(content, "x", 3, None), viewed(content))


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    plain = noise(3)
    with_alpha = plain.copy()
    with_alpha.putalpha(255)
    content = encoded(with_alpha, "PNG")
    assert np.array_equal(decode(content, "x", 3, None, "red"), np.asarray(plain))
    assert probe(content, "x").alpha
    assert not is_transparent(content, "x")
    assert not is_transparent(encoded(plain, "PNG"), "x")


def test_a_grey_image_on_a_colour_is_no_longer_grey() -> None:
    content = encoded(noise(2), "PNG")
    assert probe(content, "x").grey
    assert probe(content, "x", "#777777").grey
    assert not probe(content, "x", "red").grey
    assert probe(encoded(noise(1), "PNG"), "x", "red").grey


@pytest.mark.parametrize(
    ("name", "colour"),
    [("white", (255, 255, 255)), (" Black", (0, 0, 0)), ("#1E90ff", (30, 144, 255)), ("dodgerblue", (30, 144, 255)),
     ("#fff", (255, 255, 255))],
)  # fmt: skip
def test_colours(name: str, colour: tuple[int, int, int]) -> None:
    assert colour_of(name) == colour


@pytest.mark.parametrize("name", ["wite", "", "#12345", "#12345678", "rgb(1,2,3)", "0", "#gggggg", "transparent"])
def test_what_is_no_colour_is_refused_at_once(name: str, tmp_path: Path) -> None:
    for refuse in (lambda: colour_of(name), lambda: ImageData("folder", dir=str(tmp_path), background=name)):
        with pytest.raises(UslError, match=r"data\.background: '.*' is no colour.*; expected a name such as") as error:
            refuse()
        assert "\n" not in str(error.value)


def test_the_background_reaches_the_images_and_their_caches(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "d").mkdir(exist_ok=True)
        noise(4, 8, 8).save(tmp_path / "d" / f"{i}.png")

    def read(**options: object) -> torch.Tensor:
        return open_source("folder", "train", dir=str(tmp_path / "d"), **options).read(torch.arange(3))

    cache = str(tmp_path / "cache")
    for background in ("white", "#FFFFFF", "red", "white"):
        for options in ({}, {"cache": cache}):
            expected = [viewed(path.read_bytes(), background) for path in sorted((tmp_path / "d").iterdir())]
            pixels = read(background=background, **options).permute(0, 2, 3, 1).numpy()
            assert np.array_equal(pixels, np.stack(expected))
    assert len(list(Path(cache).glob("*.u8"))) == 2
    renderings = {
        open_source("folder", "train", dir=str(tmp_path / "d"), background=name).rendering
        for name in ("white", "#ffffff", "red")
    }
    assert len(renderings) == 2
    assert identity_fields({"data.background": "red"}) == {"data.background": "red"}
    data = ImageData("folder", dir=str(tmp_path / "d"), background="red")
    assert torch.equal(data.train_source.read(torch.arange(3)), read(background="red"))
    with pytest.raises(UslError, match=r"--data\.background is for image folders"):
        open_source("digits", "train", background="red")


# orientation ---------------------------------------------------------------------------------------------


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FORMATS_WITH_A_TAG: dict[str, Callable[[Image.Image, int], bytes]] = {
    "JPEG": lambda image, o: encoded(image, "JPEG", quality=95, exif=tagged(o)),
    "MPO": lambda image, o: encoded(image, "MPO", save_all=True, append_images=[image], exif=tagged(o)),
    "PNG": lambda image, o: encoded(image, "PNG", exif=tagged(o)),
    "WebP": lambda image, o: encoded(image, "WEBP", lossless=True, exact=True, exif=tagged(o)),
    "TIFF": lambda image, o: encoded(image, "TIFF", exif=tagged(o)),
    "TIFF LZW": lambda image, o: encoded(image, "TIFF", compression="tiff_lzw", exif=tagged(o)),
    "AVIF": lambda image, o: encoded(image, "AVIF", exif=tagged(o)),
    "PNG XMP": lambda image, o: png_with_xmp(image, o),
    "PNG, tag at the end": lambda image, o: png_with_late_tag(image, o),
}


def png_with_xmp(image: Image.Image, orientation: int) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    return encoded(image, "PNG", pnginfo=info)


def png_with_late_tag(image: Image.Image, orientation: int) -> bytes:
    data = tagged(orientation).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    content = encoded(image, "PNG")
    return content[:-12] + chunk + content[-12:]


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS_WITH_A_TAG)
def test_an_image_is_turned_exactly_once(kind: str, orientation: int, alpha: bool) -> None:
    image = noise(4 if alpha and kind not in ("JPEG", "MPO") else 3, 33, 20)
    content = FORMATS_WITH_A_TAG[kind](image, orientation)
    expected = viewed(content)
    assert expected.shape == ((33, 20, 3) if orientation > 4 else (20, 33, 3))
    if kind not in ("JPEG", "MPO", "AVIF"):  # lossless: as the definition says, whatever PIL does
        steps = {1: "", 2: "m", 3: "rr", 4: "rrm", 5: "rm", 6: "r", 7: "rrrm", 8: "rrr"}[orientation]
        upright = viewed(encoded(image, "PNG"))
        for step in steps:
            upright = np.rot90(upright, -1) if step == "r" else upright[:, ::-1]
        assert np.array_equal(expected, upright)
    assert np.array_equal(decode(content, "x", 3, None), expected)
    found = probe(content, "x")
    assert (found.height, found.width) == expected.shape[:2]
    small = encoded(Image.fromarray(expected), "PNG")
    assert np.array_equal(decode(content, "x", 3, 9), decode(small, "x", 3, 9)), "the same square, to the pixel"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_big_jpeg_is_turned_as_a_small_one(orientation: int) -> None:
    """It is decoded at an eighth."""
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))
    content = encoded(photo, "JPEG", quality=95, exif=tagged(orientation))
    upright = encoded(Image.fromarray(viewed(content)), "PNG")
    ours, theirs = (decode(each, "x", 3, 32).astype(int) for each in (content, upright))
    assert np.abs(ours - theirs).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_means_nothing_is_none(orientation: int) -> None:
    image = noise(3)
    assert np.array_equal(decode(encoded(image, "PNG", exif=tagged(orientation)), "x", 3, None), np.asarray(image))


# formats -------------------------------------------------------------------------------------------------


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "content", [POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, 80, 0, 0, 0, 0) + POSTSCRIPT]
)
def test_nothing_starts_another_program(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "started"
    (tmp_path / "gs").write_text(f'#!/bin/sh\necho "$@" >> {mark}\n[ "$1" = --version ]\n')
    (tmp_path / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for look in (lambda: probe(content, "x.png"), lambda: decode(content, "x.png", 3, None)):
        with pytest.raises(UnreadableImageError, match=r"x\.png: not an image file"):
            look()
    assert not mark.exists()


@pytest.mark.parametrize(
    "kind", ["JPEG2000", "TGA", "ICO", "PCX", "SGI", "PDF", "EPS", "IM", "MSP", "XBM", "ICNS", "SPIDER"]
)
def test_only_the_documented_formats_are_opened(kind: str) -> None:
    image = Image.new({"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB"), (32, 32))
    with pytest.raises(UnreadableImageError, match=r"x\.png: not an image file"):
        decode(encoded(image, kind), "x.png", 3, None)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_content_says_what_a_file_is_and_not_its_name(kind: str) -> None:
    content = encoded(noise(3, 16, 16), kind)
    assert decode(content, "x.png", 3, 8).shape == (8, 8, 3)


@given(st.sampled_from(FORMATS), st.binary(max_size=40), st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=150)
def test_damage_is_one_line_that_names_the_file(kind: str, junk: bytes, start: int, length: int) -> None:
    content = encoded(Image.effect_noise((16, 16), 60), kind)
    damaged = content[:start] + junk + content[start + length :]
    for look in (lambda: decode(damaged, "a/x.png", 3, 8), lambda: probe(damaged, "a/x.png")):
        line = told(look)
        assert line == "" or line.startswith("a/x.png: ")
        assert "\n" not in line


def told(look: Callable[[], object]) -> str:
    """The refusal; empty if there is none."""
    try:
        look()
    except UnreadableImageError as error:
        return str(error)
    return ""


# kinds of pixels -----------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG whose header promises side² pixels."""
    content = png(8, 2, b"\0\0\0", 1)
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def test_a_bomb_is_refused_by_its_header_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"x\.png: too many pixels \(.*exceeds limit") as error:
        decode(bomb(20_000), "x.png", 3, None)
    assert "\n" not in str(error.value)
    (tmp_path / "big.png").write_bytes(bomb(20_000))
    noise(3).save(tmp_path / "good.png")
    source = open_source("folder", "train", dir=str(tmp_path), on_error="skip")
    assert (source.files, source.skipped) == (("good.png",), ("big.png",))


def test_pil_says_nothing_beside_the_line(tmp_path: Path) -> None:
    """It would warn of what is large, and of damaged tags, without the name of the file."""
    (tmp_path / "large.png").write_bytes(bomb(10_000))
    (tmp_path / "tag.jpg").write_bytes(encoded(noise(3), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"))
    code = (
        "import sys; from pathlib import Path; from usl_lightning.data.images.decode import decode\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try: decode(path.read_bytes(), path.name, 3, 8)\n"
        "    except Exception as error: print(error)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "large.png"), str(tmp_path / "tag.jpg")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("large.png: damaged image (")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_and_not_clipped(order: str) -> None:
    values = np.array([[0, 1, 128, 129], [257, 32768, 65534, 65535]], f"{order}u2")
    content = tiff(values, 16, order)
    expected = np.rint(values.astype(np.float64) * 255 / 65535)
    assert np.array_equal(decode(content, "x", 1, None)[..., 0], expected)
    assert probe(content, "x").grey


def tiff(values: np.ndarray, bits: int, order: str = "<", photometric: int = 1) -> bytes:
    """An uncompressed grey TIFF, by its definition."""
    data = values.tobytes()
    height, width = values.shape[0], values.size // values.shape[0] if bits != 12 else values.shape[1] * 8 // 12
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}H", value) + b"\0\0" for tag, value in tags.items()
    )
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return magic + data + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"


def test_12_bits_and_white_as_zero() -> None:
    packed = np.frombuffer(bytes([0xFF, 0xF0, 0x00, 0x80, 0x07, 0xFF]), np.uint8).reshape(1, 6)
    assert decode(tiff(packed, 12), "x", 1, None)[0, :, 0].tolist() == [255, 0, 128, 127]
    values = np.array([[0, 65535, 257]], "<u2")
    assert decode(tiff(values, 16, photometric=0), "x", 1, None)[0, :, 0].tolist() == [255, 0, 254]


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "mode F are not read (floating point"),
        (Image.fromarray(np.full((2, 2), -1, np.int32)), "32-bit values"),
        (Image.new("LAB", (2, 2)), "mode LAB are not read"),
    ],
)
def test_pixels_of_unknown_range_are_refused_by_name(image: Image.Image, part: str) -> None:
    with pytest.raises(UnreadableImageError) as error:
        decode(encoded(image, "TIFF"), "a/x.tif", 3, None)
    assert str(error.value).startswith("a/x.tif: ")
    assert part in str(error.value)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "AVIF"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(content, "x", 3, None).astype(int) - (255, 0, 0)).max() < 16


def test_cmyk_is_as_pil_converts_it() -> None:
    image = noise(3).convert("CMYK")
    for kind in ("TIFF", "JPEG"):
        content = encoded(image, kind)
        assert np.array_equal(decode(content, "x", 3, None), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


MODES: Sequence[str] = ("1", "L", "LA", "P", "RGB", "RGBA")


@settings(max_examples=60)
@given(st.sampled_from(MODES), st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.sampled_from([None, 1, 7]),
       st.sampled_from(["white", "black", "#204060"]), st.sampled_from([1, 3]))  # fmt: skip
def test_every_image_is_what_pil_shows(
    mode: str, width: int, height: int, orientation: int, size: int | None, background: str, channels: int
) -> None:
    content = encoded(noise(4, width, height).convert(mode), "PNG", exif=tagged(orientation))
    image = Image.fromarray(viewed(content, background))
    if channels == 1:
        image = image.convert("L")
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    expected = np.asarray(image).reshape(*image.size[::-1], channels)
    assert np.array_equal(decode(content, "x", channels, size, background), expected)


# large images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*TRANSPARENT, "PNG 16 bits", "PNG colour of 16 bits", "PNG RGB", "TIFF inverted"])
def test_an_image_in_bands_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Image.fromarray(rng.integers(0, 65536, (17, 30), dtype=np.uint16))
    colours = rng.integers(0, 2, (17, 30, 3)) + 0x1234
    row = colours.astype(">u2").tobytes()
    others: dict[str, Callable[[], bytes]] = {
        "PNG 16 bits": lambda: encoded(deep, "PNG", transparency=int(np.asarray(deep)[9, 9])),
        "PNG colour of 16 bits": lambda: png(16, 2, row, 30, (b"tRNS", struct.pack(">3H", *[0x1234] * 3)), rows=17),
        "PNG RGB": lambda: encoded(noise(3, 30, 17), "PNG"),
        "TIFF inverted": lambda: encoded(deep, "TIFF", tiffinfo={262: 0}),
    }
    content = {**TRANSPARENT, **others}[kind]()
    found = [(decode(content, "x", c, size, "red"), is_transparent(content, "x")) for c in (1, 3) for size in (None, 5)]
    monkeypatch.setattr(decode_module, "_BAND", 31)
    for (pixels, transparent), channels, size in zip(found, (1, 1, 3, 3), (None, 5, None, 5), strict=True):
        assert np.array_equal(decode(content, "x", channels, size, "red"), pixels)
        assert is_transparent(content, "x") == transparent


def test_the_largest_image_takes_little_more_than_its_pixels() -> None:
    """A few bytes can say that there are many pixels: 40 million of four bytes here, 160 MB."""
    script = (
        "import io, resource\nfrom PIL import Image\nfrom usl_lightning.data.images.decode import decode\n"
        "file = io.BytesIO()\nImage.new('LA', (10000, 4000)).save(file, 'PNG', compress_level=1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert decode(file.getvalue(), 'x', 3, 8).min() == 255\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 2.5 * 160
