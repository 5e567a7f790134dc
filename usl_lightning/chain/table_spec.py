"""What a table is to hold, read and checked before anything runs: rows, columns and seeds of chains."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usl_lightning.base.configs import config_parts, shipped_folder
from usl_lightning.base.documents import NULLS, Plain, parse_document, settled
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.ranges import SEED
from usl_lightning.chain.file import Chain, Stage
from usl_lightning.chain.table_keys import pool_names

KEYS = ("seeds", "metric", "set", "stages", "rows", "columns", "source", "published")
CHANGES = ("config", "command", "set")
"""What a row or a column may say of a stage."""

SHARED = ("data", "trainer", "checkpoint", "processes")
"""`usl table FILE --data.dir X` gives a parameter of these groups to every stage."""

_SHARE = re.compile(r".*accuracy(_median|_online)?")
"""A metric that is shown in percent."""

_FIGURE = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:(?:±|\+-)\s*(\d+(?:\.\d+)?)\s*)?")


@dataclass(frozen=True)
class Line:
    """A row or a column.

    Attributes:
        name: in the table; unique.
        changes: stage -> `CHANGES` of it.
        metric: of a column's cells, in place of the table's; "": the table's.
    """

    name: str
    changes: Mapping[str, Mapping[str, Any]]
    metric: str = ""


@dataclass(frozen=True)
class Published:
    """A figure of a paper, in the table's unit.

    Attributes:
        mean: percent for accuracies.
        deviation: standard deviation, if the paper has it.
    """

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Cell:
    """A run of the table: one chain.

    Attributes:
        row, column, seed: where it stands.
        metric: STAGE.NAME of its figure.
        content: its chain, as a chain file has it.
        stages: those that its figure needs, in order.
        pool: stage -> name of the folder in `stages/` that all cells share which mean the same by it.
    """

    row: str
    column: str
    seed: int
    metric: tuple[str, str]
    content: Mapping[str, Any]
    stages: Sequence[Stage]
    pool: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{_slug(self.row)}_{_slug(self.column)}_seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.row}, {self.column}, seed {self.seed}"


@dataclass
class Table:
    """What a file and the options ask for.

    Attributes:
        path: the file.
        rows, columns, seeds: all combinations are cells.
        stages: entries of the chain that rows and columns change.
        metric: of every cell whose column names no other: NAME of the last stage, or STAGE.NAME.
        shared: what is set for all stages.
        typed: what was typed for one stage or all, which beats all else.
        source: of the published figures.
        published: (row, column) -> figure.
    """

    path: Path
    rows: list[Line]
    columns: list[Line]
    seeds: list[int]
    stages: list[dict[str, Any]]
    metric: str
    shared: Mapping[str, Any]
    typed: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    published: dict[tuple[str, str], Published] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, given: Mapping[str, str]) -> "Table":
        """Read and check a table.

        Args:
            path: the YAML file.
            given: `rows`, `columns`, `seeds`, `metric`, `STAGE.KEY` and `data.KEY` as typed.

        Raises:
            UslError: names the file or the option, the key and what was expected.
        """
        content = {key: value for _, part in config_parts(path) for key, value in part.items()}
        if not {"rows", "columns"} <= content.keys():
            raise UslError(f"{path}: not a table, it has no 'rows:' and 'columns:'; usl run {path.name} runs a chain")
        for key in content:
            if key not in KEYS:
                raise UslError(f"{path}: unknown key '{key}'{did_you_mean(key, KEYS)}; expected {', '.join(KEYS)}")
        entries = content.get("stages")
        if (
            not isinstance(entries, list)
            or not entries
            or not all(isinstance(e, Mapping) and e.get("name") for e in entries)
        ):
            raise UslError(f"{path}: stages: expected a list of name, command, config, set")
        names = [str(entry["name"]) for entry in entries]
        table = cls(
            path,
            _lines(path, "rows", content["rows"], names),
            _lines(path, "columns", content["columns"], names),
            _seeds(
                given.get("seeds", content.get("seeds", "[0, 1, 2]")),
                "--seeds" if "seeds" in given else f"{path}: seeds",
            ),
            [dict(entry) for entry in entries],
            str(settled(content.get("metric", "test_accuracy"))),
            _mapping(content.get("set"), f"{path}: set"),
            source=str(settled(content.get("source") or "")),
        )
        table._read_published(content.get("published"))
        if "metric" in given:
            table._show(given["metric"])
        table.rows = _chosen(table.rows, given.get("rows"), "rows")
        table.columns = _chosen(table.columns, given.get("columns"), "columns")
        table.typed = _typed(
            {key: text for key, text in given.items() if key not in ("rows", "columns", "seeds", "metric")}, names
        )
        return table

    def cells(self) -> list[Cell]:
        """All cells, by seed, row and column.

        Raises:
            UslError: a chain that cannot be, or a metric of no stage; names the row and the column.
        """
        found = [self._cell(row, column, seed) for seed in self.seeds for row in self.rows for column in self.columns]
        names: dict[str, Cell] = {}
        for cell in found:
            other = names.setdefault(cell.name, cell)
            if other is not cell:
                raise UslError(f"{self.path}: '{other}' and '{cell}' would share the folder {cell.name}; rename one")
        return found

    def unit(self, column: str) -> float:
        """What its figures are multiplied by: 100 for accuracies, which are shown in percent."""
        return 100.0 if _SHARE.fullmatch(self._own(column) or self.metric) else 1.0

    def _own(self, column: str) -> str:
        """The metric that a column has in place of the table's; "" if it has none."""
        return next((line.metric for line in self.columns if line.name == column), "")

    def _show(self, metric: str) -> None:
        """Another metric than the file's; published figures stay where they are of it, or of its late median."""
        kept = metric in (self.metric, f"{self.metric}_median")
        self.published = {place: told for place, told in self.published.items() if kept or self._own(place[1])}
        self.metric = metric

    def _cell(self, row: Line, column: Line, seed: int) -> Cell:
        entries = [self._changed(entry, (column, row)) for entry in self.stages]
        stage, _, metric = (column.metric or self.metric).rpartition(".")
        stage = stage or str(entries[-1]["name"])
        try:
            chain = Chain.of({"seed": str(seed), "set": self.shared, "stages": entries}, self.path)
            needed = _needed(chain.stages, stage, self.path)
        except UslError as error:
            where = "" if str(self.path) in str(error) else f"{self.path}: "
            raise UslError(f"{where}{error} (row '{row.name}', column '{column.name}')") from error
        content = {"seed": seed, "stages": [_entry(each) for each in needed]}
        return Cell(row.name, column.name, seed, (stage, metric), content, needed, pool_names(needed, seed))

    def _changed(self, entry: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
        """An entry of the stages as a column, then a row, then what was typed change it."""
        name = str(entry["name"])
        settings = _mapping(entry.get("set"), f"{self.path}: stage {name}: set")
        changed = dict(entry)
        for line in lines:
            change = dict(line.changes.get(name, {}))
            settings |= change.pop("set", {})
            changed |= change
        groups = {key: key.partition(".") for key in self.typed}
        settings |= {key: Plain(self.typed[key]) for key, (group, _, _) in groups.items() if group in SHARED}
        settings |= {inner: Plain(self.typed[key]) for key, (group, _, inner) in groups.items() if group == name}
        return {**changed, "set": settings}

    def _read_published(self, content: Any) -> None:
        """The figures, by row: a list as long as the columns, null where the paper has none."""
        where = f"{self.path}: published"
        names = [row.name for row in self.rows]
        for row, figures in _mapping(content, where).items():
            if row not in names:
                raise UslError(f"{where}: there is no row '{row}'{did_you_mean(row, names)}; expected one of rows")
            if not isinstance(figures, list) or len(figures) != len(self.columns):
                count = len(self.columns)
                raise UslError(f"{where}: {row}: expected a list of {count} figures, one a column, null for none")
            for column, figure in zip(self.columns, figures, strict=True):
                if settled(figure) is not None:
                    told = self._figure(str(figure), f"{where}: {row}, {column.name}")
                    self.published[row, column.name] = told
        percent = [told.mean for (_, column), told in self.published.items() if self.unit(column) == 100]
        if percent and not (all(0 <= mean <= 100 for mean in percent) and max(percent) > 1):
            raise UslError(f"{where}: accuracies are in percent, 0 to 100, as papers print them; found {percent[0]:g}")

    @staticmethod
    def _figure(text: str, where: str) -> Published:
        match = _FIGURE.fullmatch(text)
        if match is None:
            raise UslError(f"{where}: {text!r} is no figure; expected 76.6, or 76.6 ± 1.2")
        return Published(float(match[1]), None if match[2] is None else float(match[2]))


def _lines(path: Path, kind: str, content: Any, stages: Sequence[str]) -> list[Line]:
    lines = []
    for name, changes in _mapping(content, f"{path}: {kind}").items():
        where = f"{path}: {kind}: {name}"
        if not name.strip() or not name.isprintable() or not _slug(name) or len(name) > 80:
            raise UslError(f"{where}: {name!r} is no name; expected letters, digits and spaces, 80 at most")
        changes = _mapping(changes, where)
        metric = str(settled(changes.pop("metric", ""))) if kind == "columns" else ""
        for stage, given in changes.items():
            if stage not in stages:
                near = did_you_mean(stage, stages)
                raise UslError(f"{where}: there is no stage '{stage}'{near}; expected one of stages")
            change = changes[stage] = _mapping(given, f"{where}: {stage}")
            for key in change:
                if key not in CHANGES:
                    near = did_you_mean(key, CHANGES)
                    raise UslError(f"{where}: {stage}: unknown key '{key}'{near}; expected {', '.join(CHANGES)}")
            change["set"] = _mapping(change.get("set"), f"{where}: {stage}: set")
        lines.append(Line(name, changes, metric))
    if not lines:
        raise UslError(f"{path}: {kind}: there is none; expected names, and what each changes in the stages")
    return lines


def _needed(stages: Sequence[Stage], last: str, path: Path) -> list[Stage]:
    """A stage and those that it takes from, directly or not, in order."""
    names = [stage.name for stage in stages]
    if last not in names:
        near = did_you_mean(last, names)
        raise UslError(f"{path}: metric: there is no stage '{last}'{near}; expected NAME, or STAGE.NAME")
    wanted = {last}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted |= set(stage.needs())
    return [stage for stage in stages if stage.name in wanted]


def _entry(stage: Stage) -> dict[str, Any]:
    """A stage as a chain file has it, which may lie anywhere."""
    config = stage.config.name if stage.config.parent == shipped_folder() else str(stage.config.absolute())
    return {
        "name": str(stage.name),
        "command": stage.command,
        "config": config,
        "set": {key: None if text in NULLS else str(text) for key, text in stage.set.items()},
    }


def _seeds(value: Any, where: str) -> list[int]:
    seeds = settled(parse_document(value, where) if isinstance(value, str) else value)
    seeds = seeds if isinstance(seeds, list) else [seeds]
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or SEED.problem(seed):
            raise UslError(
                f"{where}: {seed!r} is no seed; expected a list of whole numbers from {SEED}, such as [0, 1, 2]"
            )
    if not seeds or len(set(seeds)) < len(seeds):
        raise UslError(f"{where}: expected at least one seed, none of them twice, such as [0, 1, 2]")
    return seeds


def _chosen(lines: list[Line], text: str | None, kind: str) -> list[Line]:
    if text is None:
        return lines
    value = parse_document(text, f"--{kind}") if text.startswith("[") else text
    names, known = (
        [str(name) for name in (value if isinstance(value, list) else [value])],
        [line.name for line in lines],
    )
    if not names:
        raise UslError(f"--{kind}: none is given; expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UslError(
                f"--{kind}: there is no '{name}'{did_you_mean(name, known)}; expected some of {', '.join(known)}"
            )
    return [line for line in lines if line.name in names]


def _typed(given: Mapping[str, str], stages: Sequence[str]) -> dict[str, str]:
    groups = (*stages, *SHARED)
    for key in given:
        group, _, name = key.partition(".")
        if group not in groups or not name:
            own = ("rows", "columns", "seeds", "metric", "name", "out", "dry-run", "slurm", "slurm-header", "wandb")
            expected = (*own, *(f"{each}.KEY" for each in groups))
            near = did_you_mean(key, expected)
            raise UslError(f"usl table: unknown option --{key}{near}; expected --{', --'.join(expected)}")
    return dict(given)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if settled(value) is None:
        return {}
    if not isinstance(value, Mapping):
        raise UslError(f"{where}: expected keys and values, found {settled(value)!r}")
    return {str(key): inner for key, inner in value.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")
