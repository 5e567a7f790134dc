"""Line charts: where the points are, and the marks of an axis."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageFont

from usl_lightning.base.ticks import ticks
from usl_lightning.pictures.curves import (
    BOTTOM,
    COLOURS,
    GRID,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    Panel,
    draw_curves,
)
from usl_lightning.pictures.lettering import lacking, lettering


def near(pixels: np.ndarray, x: float, y: float, colour: str) -> bool:
    """Whether a pixel within 2 of (x, y) has the colour."""
    part = pixels[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].astype(int)
    return bool((np.abs(part - ImageColor.getrgb(colour)).sum(2) < 12).any())


@pytest.mark.parametrize("log_x", [True, False])
def test_points_are_where_they_belong(log_x: bool, tmp_path: Path) -> None:
    curves = [Curve("a", [(1, 0, 0, 0), (10, 5, 4, 6), (100, 10, 10, 10)]), Curve("b", [(1, 8, 8, 8), (100, 2, 2, 2)])]
    panels = [Panel("one", "x", curves, top=10, log_x=log_x), Panel("two", "x", curves[:1], top=10, log_x=log_x)]
    draw_curves(panels, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == 2 * WIDTH
    for panel in (0, 1):
        for x, y, _, _ in curves[0].points:
            share = np.log10(x) / 2 if log_x else (x - 1) / 99
            across = panel * WIDTH + LEFT + share * (WIDTH - LEFT - RIGHT)
            assert near(pixels, across, TOP + (1 - y / 10) * (HEIGHT - TOP - BOTTOM), COLOURS[0])
    first = LEFT, TOP + 0.2 * (HEIGHT - TOP - BOTTOM)
    assert near(pixels, *first, COLOURS[1])
    assert not near(pixels, first[0] + WIDTH, first[1], COLOURS[1])


def test_one_point_and_no_point(tmp_path: Path) -> None:
    draw_curves([Panel("one", "x", [Curve("a", [(3, 0.0, 0.0, 0.0)]), Curve("b", [])])], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert near(pixels, WIDTH - RIGHT - 8, HEIGHT - BOTTOM, GRID), "across the whole chart"
    with pytest.raises(ValueError, match="no points"):
        draw_curves([Panel("one", "x", [Curve("a", [])])], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("value", [-5.0, -1e-9, 0.0, 5e-324, 1e-9, 3.0])
def test_a_constant_is_inside_the_chart(value: float, tmp_path: Path) -> None:
    draw_curves([Panel("one", "x", [Curve("a", [(x, value, value, value) for x in (1, 50, 100)])])], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))[TOP - 2 : HEIGHT - BOTTOM + 2]
    drawn = (np.abs(pixels.astype(int) - ImageColor.getrgb(COLOURS[0])).sum(2) < 12).any(0).nonzero()[0]
    assert (drawn[0], drawn[-1]) == (pytest.approx(LEFT, abs=4), pytest.approx(WIDTH - RIGHT, abs=4))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    steps = np.diff(marks)
    assert 2 <= len(marks) <= 7
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3, atol=1e-9 * abs(low))
    assert low - 1e-6 * width <= marks[0]
    assert marks[-1] <= low + width * (1 + 1e-6)


def test_ticks_by_hand() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0, 1.05) == [0, 0.5, 1.0]
    assert ticks(3, 7) == [3, 4, 5, 6, 7]


def test_letters_that_the_font_lacks_are_not_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ImageFont.load_default(24)
    assert lettering("café, naïve ± 1", 24)[1] == "café, naïve ± 1"
    assert lacking(known, "λж") == {"λ", "ж"}
    font, text = lettering("λ = 0", 24)
    assert not lacking(font, text)
    monkeypatch.setattr("usl_lightning.pictures.lettering.FONTS", ())
    assert lettering("λ = 0, ж", 24)[1] == "lamda = 0, zhe"
    draw_curves([Panel("猫", "", [Curve("λ", [(0, 1, 1, 1)])], names=["кот"])], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_long_names_have_room_in_the_legend(tmp_path: Path) -> None:
    """None runs into the line before the next."""
    names = ["a name that is wider than the others are by far", "b"]
    draw_curves(2 * [Panel("", "", [Curve(name, [(0, 1, 1, 1)]) for name in names])], tmp_path / "a.png")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    second = np.abs(drawn - np.array([0xD6, 0x27, 0x28])).sum(2) < 30
    rows = np.nonzero(second[400:].any(1))[0] + 400
    line = np.nonzero(second[rows[0]])[0]
    left = drawn[rows[0] - 5 : rows[-1] + 6, : line[0]]
    assert (left[:, -15:-6] == 255).all()
