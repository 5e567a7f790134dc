"""A folder of every format, orientation and transparency is, to the pixel, what a viewer shows: decoded and cached."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_decode import FORMATS_WITH_A_TAG, encoded, noise, viewed

from usl_lightning.data.images.cache import CachedSource
from usl_lightning.data.images.decode import FORMATS
from usl_lightning.data.images.opening import open_source

WITHOUT_A_TAG: dict[str, Callable[[Image.Image], bytes]] = {
    "GIF": lambda image: encoded(image, "GIF"),
    "BMP": lambda image: encoded(image, "BMP"),
    "PPM": lambda image: encoded(image.convert("RGB"), "PPM"),
}
"""Formats that cannot say how they are to be turned."""


def written(folder: Path) -> dict[str, bytes]:
    """Path -> content of square images: each format, orientation 1 to 8, with and without alpha."""
    contents: dict[str, bytes] = {}
    for alpha in (False, True):
        for kind, encode in FORMATS_WITH_A_TAG.items():
            image = noise(4 if alpha and kind not in ("JPEG", "MPO") else 3, 24, 24)
            for orientation in range(1, 9):
                contents[f"{kind}/{alpha}{orientation}.png"] = encode(image, orientation)
        for kind, plain in WITHOUT_A_TAG.items():
            contents[f"{kind}/{alpha}.png"] = plain(noise(4 if alpha else 3, 24, 24))
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


@pytest.mark.parametrize("background", ["white", "#1e90ff"])
def test_a_folder_is_read_as_a_viewer_shows_it(background: str, tmp_path: Path) -> None:
    contents = written(tmp_path / "d")
    assert {kind.split()[0].strip(",").upper() for kind in (*FORMATS_WITH_A_TAG, *WITHOUT_A_TAG)} == {*FORMATS, "MPO"}
    shown = {name: viewed(content, background) for name, content in contents.items()}
    (tmp_path / "upright").mkdir()
    for number, name in enumerate(sorted(shown)):
        (tmp_path / "upright" / f"{number:03}.png").write_bytes(encoded(Image.fromarray(shown[name]), "PNG"))
    for size in (None, 9):
        options = {"dir": str(tmp_path / "d"), "image_size": size, "background": background}
        upright = open_source("folder", "train", dir=str(tmp_path / "upright"), image_size=size)
        plain = open_source("folder", "train", **options)
        cached = open_source("folder", "train", cache=str(tmp_path / "cache"), **options)
        assert isinstance(cached, CachedSource)
        assert plain.files is not None
        names = sorted(plain.files)
        assert names == sorted(shown)
        expected = upright.read(torch.arange(len(names)))
        for source in (plain, cached):
            pixels = source.read(torch.tensor([plain.files.index(name) for name in names]))
            assert [name for name, a, b in zip(names, pixels, expected, strict=True) if not torch.equal(a, b)] == []
        for slot, name in enumerate(names if size is None else ()):
            assert torch.equal(expected[slot], torch.tensor(shown[name]).permute(2, 0, 1)), name
