"""Charts of a report: points where they belong, words that say the same, one mark a point."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.report.markup import Html, Names, render, tag
from usl_lightning.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Lines,
    Map,
    line_chart,
    point_map,
    spread_colours,
    thinned,
)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", text)]


def test_points_of_a_line() -> None:
    chart = Lines("A < B", {"one": [(10, 0.0), (20, 0.25), (30, 1.0)], "two": [(30, 0.5)]}, percent=True)
    svg = line_chart(chart, Names())
    (path,) = re.findall(r'<path d="([^"]+)" class="line s0"', svg.partition("</svg>")[0])
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    expected = [LEFT, HEIGHT - BOTTOM, LEFT + across / 2, HEIGHT - BOTTOM - down / 4, WIDTH - RIGHT, TOP]
    assert numbers(path) == pytest.approx(expected, abs=0.05)
    assert f'<circle cx="{WIDTH - RIGHT}" cy="{TOP + down / 2:g}" r="4" class="dot s1">' in svg, (
        "a single point is a dot"
    )
    assert "one: from 0.0% at step 10 to 100.0% at step 30; two: 50.0% at step 30" in svg
    assert "A &lt; B" in svg
    assert "A < B" not in svg


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 7.0, 5e-324, -5e-324])
def test_a_constant_is_a_line_inside_the_chart(value: float) -> None:
    svg = line_chart(Lines("c", {"x": [(1, value), (9, value * (1 + 1e-8))]}), Names())
    (path,) = re.findall(r'<path d="([^"]+)"', svg)
    first, last = numbers(path)[1::2]
    assert first == last, "what is rounding only is not magnified"
    assert TOP <= first <= HEIGHT - BOTTOM


@pytest.mark.parametrize("steps", [(1, 2), (1, 3), (7, 8), (1, 9), (1, 100)])
def test_a_step_stands_once_and_is_whole(steps: tuple[int, int]) -> None:
    svg = line_chart(Lines("c", {"x": [(step, float(step)) for step in steps]}), Names())
    told = [int(text) for text in re.findall(r'text-anchor="middle">([^<]+)<', svg)]
    assert told == sorted(set(told))
    assert steps[0] <= told[0] < told[-1] <= steps[1]


@pytest.mark.parametrize("low", [1e6, 1.0, 3e-5])
def test_no_two_lines_have_the_same_number(low: float) -> None:
    for spread in (1e-7, 1e-5, 3e-5, 2e-4, 1e-3, 1.0):
        svg = line_chart(Lines("c", {"x": [(1, low), (2, low * (1 + spread))]}), Names())
        told = re.findall(r'text-anchor="end">([^<]+)<', svg)
        assert len(told) == len(set(told)), spread


@given(st.integers(1, 500), st.integers(2, 50))
def test_thinned_lines_keep_their_ends(count: int, most: int) -> None:
    points = [(float(i), 0.0) for i in range(count)]
    kept = thinned(points, most)
    assert len(kept) == min(count, most)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert all(a < b for a, b in pairwise(kept))


def test_a_map_keeps_directions_and_marks() -> None:
    places = [(0.0, 0.0), (1.0, 0.0), (0.0, 2.0), (1.0, 2.0)]
    svg = point_map(Map("m", "words", places, [0, 1, 0, None], [2], ["the <third>"]), Names())
    dots = dict(re.findall(r'<path d="([^"]+)" class="dots (\w+)"', svg))
    by_colour = {colour: numbers(path.replace("h0", "")) for path, colour in dots.items()}
    assert by_colour.keys() == {"s0", "s1", "plain"}
    (x0, y0, x2, y2), (x1, y1) = by_colour["s0"], by_colour["s1"]
    assert x0 == x2 < x1
    assert y2 < y0 == y1, "up is up"
    assert re.findall(r'<circle cx="(\d+)" cy="(\d+)"', svg) == [(f"{x2:.0f}", f"{y2:.0f}")]
    assert "<title>the &lt;third&gt;</title>" in svg


def test_colours_end_where_they_could_not_be_told_apart() -> None:
    assert spread_colours(3) == [0, 1, 2]
    assert set(spread_colours(11)) == {None}


@given(st.text())
def test_text_is_escaped_once_and_markup_never(text: str) -> None:
    element = tag("p", text, Html("<br>"), title=text)
    inner = element.removeprefix('<p title="').removesuffix("<br></p>")
    assert not set(inner.replace('">', "", 1)) & set("<>")
    assert render(element) == element


def test_attributes() -> None:
    assert tag("a", None, ["x", 1], class_="b", aria_hidden=True, id=None, hidden=False, width=1.5) == (
        '<a class="b" aria-hidden width="1.5">x1</a>'
    )
    assert tag("img", src="data:") == '<img src="data:">'
