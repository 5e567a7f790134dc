"""Charts as inline SVG: lines and a map of points. Colours are CSS variables, so that they suit light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from usl_lightning.base.ticks import TINIEST, ticks
from usl_lightning.report.markup import Html, Names, tag

COLOURS = 10
"""Colours of the style sheet, `--c0` … `--c9`; further lines begin again, with other dashes."""

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 34
POINTS = 200
"""Points of a line, at most."""

_DASHES = ("", "6 3", "2 3", "8 3 2 3")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Lines:
    """A chart of lines over training steps, or what else is counted.

    Attributes:
        title: above it.
        series: name -> (step, value), by step; at least one point in all.
        percent: values are fractions, shown from 0 to 100%.
        unit: what is counted.
    """

    title: str
    series: Mapping[str, Points]
    percent: bool = False
    unit: str = "step"


def line_chart(chart: Lines, names: Names) -> Html:
    """A figure: title, chart with a description in words, and a legend where there are several lines."""
    series = {name: thinned(points) for name, points in chart.series.items() if points}
    low, high = _range(series, chart.percent)
    first = min(points[0][0] for points in series.values())
    last = max(points[-1][0] for points in series.values())

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return (
            LEFT + share * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    content = [_axes(low, high, first, last, place(first, low)[1], chart)]
    for number, points in enumerate(series.values()):
        content.append(_line([place(x, y) for x, y in points], number))
    words = "; ".join(_told(name, points, chart) for name, points in series.items())
    legend = _legend(list(series)) if len(series) > 1 else None
    picture = _svg(chart.title, words, content, (WIDTH, HEIGHT), names)
    return tag("figure", tag("figcaption", chart.title), picture, legend, class_="chart")


def thinned(points: Points, most: int = POINTS) -> Points:
    """At most `most` of the points, evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def figure(value: float, percent: bool = False) -> str:
    """A number for people: three or four digits."""
    return f"{value:.1%}" if percent else f"{value:.4g}"


def _range(series: Mapping[str, Points], percent: bool) -> tuple[float, float]:
    if percent:
        return 0.0, 1.0
    values = [y for points in series.values() for _, y in points]
    low, high = min(values), max(values)
    low = 0.0 if 0 <= low < high / 2 else low
    if high - low > max(TINIEST, 1e-4 * max(abs(low), abs(high))):  # less is rounding, and no number at a line tells it
        return low, high
    return (0.0, 1.0) if abs(low) < TINIEST else (low - abs(low) / 2, high + abs(high) / 2)


def _axes(low: float, high: float, first: float, last: float, bottom: float, chart: Lines) -> Html:
    marks = []
    for y in ticks(low, high, 4):
        height = bottom - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=round(height, 1), y2=round(height, 1), class_="grid"))
        text = f"{y:.0%}" if chart.percent else f"{y:g}"
        marks.append(tag("text", text, x=LEFT - 6, y=round(height + 4, 1), text_anchor="end"))
    for x in filter(float.is_integer, map(float, ticks(first, last, 4))) if last > first else [first]:
        across = LEFT + ((x - first) / (last - first) if last > first else 0.5) * (WIDTH - LEFT - RIGHT)
        marks.append(tag("text", f"{x:,.0f}", x=round(across, 1), y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    marks.append(tag("text", chart.unit, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end"))
    return tag("g", marks, class_="axes")


def _line(places: Points, number: int) -> Html:
    colour, dash = f"s{number % COLOURS}", _DASHES[(number // COLOURS + number) % len(_DASHES)]
    if len(places) == 1:
        return tag("circle", cx=round(places[0][0], 1), cy=round(places[0][1], 1), r=4, class_=f"dot {colour}")
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return tag("path", d=path, class_=f"line {colour}", stroke_dasharray=dash or None)


def _told(name: str, points: Points, chart: Lines) -> str:
    (first, before), (last, after) = points[0], points[-1]
    end = f"{figure(after, chart.percent)} at {chart.unit} {last:,.0f}"
    if len(points) == 1:
        return f"{name}: {end}"
    return f"{name}: from {figure(before, chart.percent)} at {chart.unit} {first:,.0f} to {end}"


def _legend(texts: Sequence[str]) -> Html:
    return tag("ul", [tag("li", swatch(i), text) for i, text in enumerate(texts)], class_="legend")


def swatch(number: int) -> Html:
    """A piece of line in the colour and the dashes of line `number`."""
    return tag(
        "svg", _line([(0, 6), (24, 6)], number), viewBox="0 0 24 12", width=24, height=12, aria_hidden="true",
    )  # fmt: skip


def _svg(title: str, words: str, content: Sequence[Html], size: tuple[int, int], names: Names) -> Html:
    identity = names.new("chart")
    head = tag("title", title, id=f"{identity}-t"), tag("desc", words, id=f"{identity}-d")
    return tag(
        "svg", *head, *content, viewBox=f"0 0 {size[0]} {size[1]}", role="img",
        aria_labelledby=f"{identity}-t {identity}-d",
    )  # fmt: skip


# a map of points -----------------------------------------------------------------------------------------

MAP_WIDTH, MAP_HEIGHT = 720, 520
_MARGIN = 16


@dataclass(frozen=True)
class Map:
    """Points in the plane.

    Attributes:
        title, words: its name, and what is to be seen, for those who cannot.
        places: (x, y) of each point, in any unit.
        colours: of each point: 0 … 9, or None for the colour of what has no class.
        marked: positions of the points that stand out, in the order of their numbers 1, 2, …
        captions: for each of them, shown under the pointer.
    """

    title: str
    words: str
    places: Points
    colours: Sequence[int | None]
    marked: Sequence[int]
    captions: Sequence[str]


def point_map(points: Map, names: Names) -> Html:
    """The map as SVG: a dot a point, a numbered disc for each that stands out."""
    xs, ys = zip(*points.places, strict=True)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min_x) / (max_x - min_x) if max_x > min_x else 0.5
        down = (max_y - y) / (max_y - min_y) if max_y > min_y else 0.5
        return _MARGIN + across * (MAP_WIDTH - 2 * _MARGIN), _MARGIN + down * (MAP_HEIGHT - 2 * _MARGIN)

    min_x, max_x, min_y, max_y = min(xs), max(xs), min(ys), max(ys)
    placed = [place(x, y) for x, y in points.places]
    dots: dict[int | None, list[str]] = {}
    for (x, y), colour in zip(placed, points.colours, strict=True):
        dots.setdefault(colour, []).append(f"M{x:.0f} {y:.0f}h0")
    order = sorted(dots, key=lambda colour: -1 if colour is None else colour)
    content = [
        tag("path", d="".join(dots[colour]), class_=f"dots {'plain' if colour is None else f's{colour}'}")
        for colour in order
    ]
    few = len(points.marked) <= 100  # beyond, numbers hide the map
    for number, (row, caption) in enumerate(zip(points.marked, points.captions, strict=True), 1):
        x, y = placed[row]
        colour = points.colours[row]
        disc = tag("circle", cx=round(x), cy=round(y), r=11 if few else 5)
        text = tag("text", number, x=round(x), y=round(y + 4), text_anchor="middle") if few else None
        kind = "plain" if colour is None else f"s{colour}"
        content.append(tag("g", tag("title", caption), disc, text, class_=f"chosen {kind}"))
    return _svg(points.title, points.words, content, (MAP_WIDTH, MAP_HEIGHT), names)


def spread_colours(count: int) -> list[int | None]:
    """The colour of each of `count` classes: none for more than ten, which could not be told apart."""
    return [i if count <= COLOURS else None for i in range(count)]


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number that a chart can show."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
