"""What came of a table: mean ± sample standard deviation of every cell, beside the published figure."""

import csv
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usl_lightning.base.atomic import read_file
from usl_lightning.base.documents import guarded
from usl_lightning.base.files import write_json, write_text
from usl_lightning.chain.table_spec import Cell, Published, Table
from usl_lightning.stage.folder import StageFolder

FILES = ("table.csv", "table.json", "table.md", "table.tex", "table.png")


@dataclass(frozen=True)
class Figure:
    """A row and a column over the seeds, in the table's unit.

    Attributes:
        row, column: where it stands.
        values: seed -> figure; of those that are there.
        missing: seeds without one -> why.
        percent: it is shown in percent.
        published: of the paper.
    """

    row: str
    column: str
    values: Mapping[int, float]
    missing: Mapping[int, str]
    percent: bool
    published: Published | None

    @property
    def mean(self) -> float | None:
        """Over the seeds that are there."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1); None of fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def apart(self) -> float | None:
        """The mean less the published one, in standard deviations.

        That of the seeds; where the paper has one too, the root of the mean of both squares. None if there is none, or
        it is 0.
        """
        if self.published is None or self.mean is None or self.deviation is None:
            return None
        both = [self.deviation] + ([] if self.published.deviation is None else [self.published.deviation])
        scale = statistics.fmean(each * each for each in both) ** 0.5
        return (self.mean - self.published.mean) / scale if scale > 0 else None

    def told(self, plus_minus: str, seeds: int) -> str:
        """`89.1 ± 2.0`, with n where it is not that of the table."""
        if self.mean is None:
            return "-"
        deviation = "" if self.deviation is None else f" {plus_minus} {self._number(self.deviation)}"
        return f"{self._number(self.mean)}{deviation}" + (
            "" if len(self.values) == seeds else f" (n={len(self.values)})"
        )

    def told_published(self, plus_minus: str) -> str:
        """`90.4, -0.7 sd`: the published figure and how far the mean is from it; "" without one."""
        if self.published is None:
            return ""
        own = "" if self.published.deviation is None else f" {plus_minus} {self._number(self.published.deviation)}"
        apart = "" if self.apart is None else f", {self.apart:+.1f} sd"
        return f"{self._number(self.published.mean)}{own}{apart}"

    def _number(self, value: float) -> str:
        return f"{value:.1f}" if self.percent else f"{value:.2f}"


@dataclass(frozen=True)
class Figures:
    """All figures of a table.

    Attributes:
        name: of the table's file.
        source: of the published figures.
        seeds: that were asked for.
        rows, columns: names, in order.
        figures: (row, column) -> figure.
        machines: what the stages ran on, each once.
    """

    name: str
    source: str
    seeds: Sequence[int]
    rows: Sequence[str]
    columns: Sequence[str]
    figures: Mapping[tuple[str, str], Figure]
    machines: Sequence[Mapping[str, str]]

    @classmethod
    def read(cls, table: Table, cells: Iterable[Cell], pool: Path, problems: Mapping[str, str]) -> "Figures":
        """The figures that the stages have left.

        Args:
            table, cells: what it holds.
            pool: the folder of the stages.
            problems: name of a cell -> why it has failed.

        Raises:
            UslError: a stage's record is damaged.
        """
        values: dict[tuple[str, str], dict[int, float]] = {}
        missing: dict[tuple[str, str], dict[int, str]] = {}
        machines: list[Mapping[str, str]] = []
        for cell in cells:
            place, (stage, metric) = (cell.row, cell.column), cell.metric
            record = StageFolder(pool / cell.pool[stage]).record() or {}
            found = record.get("metrics", {}).get(metric) if record.get("status") == "complete" else None
            if record.get("machine") and record["machine"] not in machines:
                machines.append(record["machine"])
            if isinstance(found, int | float):
                values.setdefault(place, {})[cell.seed] = found * table.unit(cell.column)
            else:
                there = ", ".join(record.get("metrics", {})) or "nothing"
                why = f"{stage} tells no {metric}, but {there}" if record.get("status") == "complete" else "not run yet"
                missing.setdefault(place, {})[cell.seed] = problems.get(cell.name, why)
        figures = {
            (row.name, column.name): Figure(
                row.name,
                column.name,
                values.get((row.name, column.name), {}),
                missing.get((row.name, column.name), {}),
                table.unit(column.name) == 100,
                table.published.get((row.name, column.name)),
            )
            for row in table.rows
            for column in table.columns
        }
        names = [row.name for row in table.rows], [column.name for column in table.columns]
        return cls(table.path.stem, table.source, table.seeds, *names, figures, machines)

    def text(self) -> str:
        """The table for a terminal, then what is missing."""
        rows = [["", *self.columns]]
        for row in self.rows:
            mine = [self.figures[row, column] for column in self.columns]
            rows.append([row, *(figure.told("±", len(self.seeds)) for figure in mine)])
            if any(figure.published for figure in mine):
                rows.append(["  published", *(figure.told_published("±") or "-" for figure in mine)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", self._caption("±"), *self._missing()])

    def markdown(self) -> str:
        """The table in Markdown; a published figure in brackets."""
        lines = [["", *self.columns], ["---"] * (len(self.columns) + 1)]
        lines += [
            [row, *(self._beside(self.figures[row, column], "±") for column in self.columns)] for row in self.rows
        ]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join([table, self._caption("±"), *self._missing()]) + "\n"

    def latex(self) -> str:
        """A `tabular`, without packages; a published figure in brackets."""
        lines = [["", *map(_escaped, self.columns)]]
        lines += [
            [_escaped(row), *(self._beside(self.figures[row, column], r"$\pm$") for column in self.columns)]
            for row in self.rows
        ]
        head, *body = [" & ".join(line) + r" \\" for line in lines]
        caption = _escaped(self._caption("+-")).replace("+-", r"$\pm$")
        return "\n".join(
            [
                f"% {caption}",
                rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}",
                *(r"\hline", head, r"\hline", *body, r"\hline"),
                "\\end{tabular}\n",
            ]
        )

    def csv(self) -> str:
        """A line for each row and column."""
        text = io.StringIO()
        names = ("row", "column", "n", "mean", "sd", "least", "most", "published", "published_sd", "difference_sd")
        writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for told in self.told():
            writer.writerow({**told, "row": guarded(str(told["row"])), "column": guarded(str(told["column"]))})
        return text.getvalue()

    def told(self) -> list[dict[str, Any]]:
        """All that is known of each row and column, with the figure of every seed."""
        return [
            {
                "row": figure.row, "column": figure.column, "n": len(figure.values), "mean": _short(figure.mean),
                "sd": _short(figure.deviation), "least": _short(min(figure.values.values(), default=None)),
                "most": _short(max(figure.values.values(), default=None)),
                "published": figure.published and figure.published.mean,
                "published_sd": figure.published and figure.published.deviation,
                "difference_sd": _short(figure.apart),
                "values": {str(seed): _short(value) for seed, value in figure.values.items()},
                "missing": {str(seed): why for seed, why in figure.missing.items()},
            }
            for figure in self.figures.values()
        ]  # fmt: skip

    def _beside(self, figure: Figure, plus_minus: str) -> str:
        published = figure.told_published(plus_minus)
        return figure.told(plus_minus, len(self.seeds)) + (f" ({published})" if published else "")

    def _caption(self, plus_minus: str) -> str:
        seeds = f"n = {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
        source = (
            f"; published: {self.source}" if self.source and any(f.published for f in self.figures.values()) else ""
        )
        return f"mean {plus_minus} sample standard deviation, {seeds}{source}"

    def _missing(self) -> list[str]:
        reasons: dict[str, list[str]] = {}
        for figure in self.figures.values():
            for seed, why in figure.missing.items():
                reasons.setdefault(why, []).append(f"{figure.row}, {figure.column}, seed {seed}")
        return [
            f"missing, {why}: {'; '.join(places[:5])}{f'; and {len(places) - 5} more' if len(places) > 5 else ''}"
            for why, places in reasons.items()
        ]


def write_results(figures: Figures, folder: Path, *, again: bool) -> Sequence[str]:
    """Write `FILES` into the table's folder.

    Args:
        figures: of the table.
        folder: of the table.
        again: write them even if all are there and the figures as the file has them.

    Returns:
        The names of those that are there.
    """
    known = folder / "table.csv"
    text = figures.csv()
    if again or not all((folder / name).exists() for name in FILES) or read_file(known) != text.encode():
        told = {"table": figures.name, "seeds": list(figures.seeds), "machines": list(figures.machines)}
        write_json(folder / "table.json", told | {"cells": figures.told()})
        write_text(folder / "table.md", figures.markdown())
        write_text(folder / "table.tex", figures.latex())
        write_text(known, text)
        _draw(figures, folder / "table.png")
    return [name for name in FILES if (folder / name).exists()]


def _draw(figures: Figures, path: Path) -> None:
    """A panel for each kind of column, against the number in its name; against the columns where there is none."""
    if not any(figure.values for figure in figures.figures.values()):
        return
    from usl_lightning.pictures.curves import Curve, Panel, draw_curves

    groups: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for place, column in enumerate(figures.columns):
        number = re.search(r"(?<![\w.-])\d+(?:\.\d+)?", column)
        before, after = (column[: number.start()], column[number.end() :]) if number else ("", "")
        kind = before.strip(" ,"), after.strip(" ,")
        groups.setdefault(kind, []).append((float(number[0]) if number else place, column))
    numbered = all(len({x for x, _ in group}) == len(group) > 1 and any(kind) for kind, group in groups.items())
    if not numbered:
        groups = {(figures.name, ""): [(float(place), column) for place, column in enumerate(figures.columns)]}
    panels = []
    for (before, after), group in groups.items():
        curves = [Curve(row, _points(figures, row, group)) for row in figures.rows]
        top = 100.0 if all(figures.figures[r, c].percent for r in figures.rows for _, c in group) else None
        names = () if numbered else tuple(column for _, column in group)
        if any(curve.points for curve in curves):
            positive = all(x > 0 for x, _ in group)
            panels.append(Panel(before or figures.name, after, curves, top, numbered and positive, names))
    draw_curves(panels, path)


def _points(figures: Figures, row: str, group: Sequence[tuple[float, str]]) -> list[tuple[float, float, float, float]]:
    points = []
    for x, column in sorted(group):
        figure = figures.figures[row, column]
        if figure.mean is not None:
            points.append(
                (x, figure.mean, figure.mean - (figure.deviation or 0), figure.mean + (figure.deviation or 0))
            )
    return points


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
