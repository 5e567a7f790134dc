"""The grid of images and their views."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from usl_lightning.base.errors import UslError
from usl_lightning.pictures.grid import view_grid


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.array(picture)


def test_tiles_are_the_images_magnified_in_rows(tmp_path: Path) -> None:
    images = torch.randint(0, 200, (3, 1, 8, 8), dtype=torch.uint8)
    view = images.float() / 255
    view_grid(images, {"a": [1 - view, view], "b": [images]}, tmp_path / "grid.png")
    picture = pixels_of(tmp_path / "grid.png")
    tile, gap, title = 64, 4, 16
    assert picture.shape == (title + 3 * tile + 4 * gap, 4 * tile + 5 * gap, 3)
    for row in range(3):
        for column, expected in enumerate((images, 255 - images, images, images)):
            top, left = title + gap + row * (tile + gap), gap + column * (tile + gap)
            shown = picture[top : top + tile, left : left + tile]
            magnified = expected[row, 0].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
            assert (shown == magnified[..., None]).all()


def test_every_group_has_its_title_and_only_that(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    view_grid(images, {"first": [images, images], "": [images]}, tmp_path / "grid.png")
    strip = pixels_of(tmp_path / "grid.png")[:16]
    inked = [(strip[:, left : left + 64] < 128).any() for left in (4, 72, 140, 208)]
    assert inked == [True, True, False, False]


def test_a_long_title_is_not_cut(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    view_grid(images, {"a view with quite a long name": [images], "x": [images]}, tmp_path / "grid.png")
    assert pixels_of(tmp_path / "grid.png").shape[1] > 3 * 64 + 4 * 4 + 60


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 80),
    w=st.integers(1, 80),
    side=st.integers(1, 40),
    scale=st.sampled_from([None, 1, 3]),
)
def test_sizes_may_differ(
    tmp_path_factory: pytest.TempPathFactory, n: int, h: int, w: int, side: int, scale: int | None
) -> None:
    path = tmp_path_factory.mktemp("grid") / "grid.png"
    images = torch.zeros(n, 3, h, w, dtype=torch.uint8)
    view_grid(images, {"view": [torch.zeros(n, 1, side, side)]}, path, scale=scale)
    picture = pixels_of(path)
    times = -(-64 // min(h, w)) if scale is None else scale
    assert picture.shape[0] >= 16 + n * h * times
    assert picture.shape[1] >= w * times


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no images"):
        view_grid(images[:0], {}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="view 'weak' is of 1 images; expected 2"):
        view_grid(images, {"weak": [images[:1]]}, tmp_path / "grid.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UslError, match="cannot be written"):
        view_grid(images, {}, tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
