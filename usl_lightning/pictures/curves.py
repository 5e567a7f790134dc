"""Line charts as PNG, drawn with Pillow alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.ticks import TINIEST, ticks
from usl_lightning.pictures.lettering import lettering

if TYPE_CHECKING:
    from PIL import ImageDraw

COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2",
    "#8c564b", "#7f7f7f", "#bcbd22", "#000080", "#008080", "#800000", "#4b0082",
)  # fmt: skip
INK, GRID, PAPER = "#202124", "#e1e4e8", "#ffffff"
WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 40, 36, 48
LEGEND_LINE = 20
SCALE = 2  # everything is drawn larger and shrunk, which smooths the lines


@dataclass(frozen=True)
class Curve:
    """A line with a range about it.

    Attributes:
        name: in the legend; curves of the same name have one colour in all panels.
        points: (x, y, least, most), by x.
    """

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: above it.
        x_label: below it.
        curves: its lines; they may be without points.
        top: the upper end of the y axis, which begins at 0 or below; None: what the curves need.
        log_x: a logarithmic x axis; x > 0.
        names: of x = 0, 1, …, which are then kinds, not numbers: points side by side, and no line between them.
    """

    title: str
    x_label: str
    curves: Sequence[Curve]
    top: float | None = None
    log_x: bool = False
    names: Sequence[str] = ()


def draw_curves(panels: Sequence[Panel], path: str | Path) -> None:
    """Write a PNG with the panels side by side and one legend below them.

    Raises:
        ValueError: no panel has a point.
        UslError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    if not any(curve.points for panel in panels for curve in panel.curves):
        raise ValueError("draw_curves got no points")
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    wide = max(200, 50 + max(_wide(name) for name in names))
    columns = max(1, int(len(panels) * WIDTH // wide))
    height = HEIGHT + LEGEND_LINE * -(-len(names) // columns) + LEGEND_LINE
    sheet = Image.new("RGB", (SCALE * WIDTH * len(panels), SCALE * height), PAPER)
    draw = ImageDraw.Draw(sheet, "RGBA")
    for number, panel in enumerate(panels):
        _draw_panel(draw, panel, number * WIDTH, colours)
    for number, name in enumerate(names):
        x, y = LEFT + number % columns * wide, HEIGHT + number // columns * LEGEND_LINE + LEGEND_LINE / 2
        draw.line(_scaled([(x, y), (x + 22, y)]), colours[name], 3 * SCALE)
        _write(draw, (x + 30, y), name, "lm")
    small = sheet.resize((sheet.width // SCALE, sheet.height // SCALE), Image.Resampling.LANCZOS)
    with atomic_path(path) as temporary:
        small.save(temporary, format="PNG")


def _draw_panel(draw: "ImageDraw.ImageDraw", panel: Panel, left: float, colours: dict[str, str]) -> None:
    points = [point for curve in panel.curves for point in curve.points]
    if not points:
        return
    low = min(0.0, *(point[2] for point in points)) * 1.05
    high = panel.top or max(0.0, *(point[3] for point in points)) * 1.05
    high = high if high - low > TINIEST else low + 1.0
    xs = [-0.5, len(panel.names) - 0.5] if panel.names else sorted({point[0] for point in points})

    def place(x: float, y: float) -> tuple[float, float]:
        first, last, here = (math.log(v) if panel.log_x else v for v in (xs[0], xs[-1], x))
        share = (here - first) / (last - first) if last > first else 0.5
        across = left + LEFT + share * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    for y in ticks(low, high):
        height = place(xs[0], y)[1]
        draw.line(_scaled([(left + LEFT, height), (left + WIDTH - RIGHT, height)]), GRID, SCALE)
        _write(draw, (left + LEFT - 8, height), f"{y:g}", "rm")
    for kind, name in enumerate(panel.names):
        _write(draw, (place(kind, low)[0], HEIGHT - BOTTOM + 14), name, "mm")
    shown = [] if panel.names else xs if panel.log_x else ticks(xs[0], xs[-1]) if len(xs) > 1 else xs
    for x in shown:
        _write(draw, (place(x, low)[0], HEIGHT - BOTTOM + 14), f"{x:,.0f}" if x == round(x) else f"{x:g}", "mm")
    _write(draw, (left + LEFT, TOP / 2), panel.title, "lm", size=15)
    _write(draw, (left + (WIDTH + LEFT - RIGHT) / 2, HEIGHT - 12), panel.x_label, "mm")
    for number, curve in enumerate(panel.curves):
        beside = (number + 0.5) / len(panel.curves) * 0.6 - 0.3 if panel.names else 0.0
        _draw_curve(draw, curve, colours[curve.name], place, beside, joined=not panel.names)


def _draw_curve(
    draw: "ImageDraw.ImageDraw", curve: Curve, colour: str, place: Any, beside: float, *, joined: bool
) -> None:
    line = [place(x + beside, y) for x, y, _, _ in curve.points]
    band = [place(x, most) for x, _, _, most in curve.points]
    band += [place(x, least) for x, _, least, _ in reversed(curve.points)]
    if joined and len(line) > 1:
        draw.polygon(_scaled(band), f"{colour}14")
        draw.line(_scaled(line), colour, 2 * SCALE, joint="curve")
    for (x, y), (_, _, least, most) in zip(line, curve.points, strict=True):
        top, bottom = place(1.0, most)[1], place(1.0, least)[1]
        draw.line(_scaled([(x, top), (x, bottom)]), f"{colour}66", SCALE)
        draw.ellipse(_scaled([(x - 3, y - 3), (x + 3, y + 3)]), colour)


def _write(draw: "ImageDraw.ImageDraw", place: tuple[float, float], text: str, anchor: str, *, size: int = 12) -> None:
    font, text = lettering(text, size * SCALE)
    draw.text(_scaled([place])[0], text, INK, font, anchor=anchor)


def _wide(text: str) -> float:
    font, text = lettering(text, 12 * SCALE)
    return font.getlength(text) / SCALE


def _scaled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(SCALE * x, SCALE * y) for x, y in points]
