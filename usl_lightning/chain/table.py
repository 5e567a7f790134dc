"""`usl table FILE`: rows, columns and seeds of chains, each cell a run, all in one table."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from usl_lightning.base.atomic import read_file
from usl_lightning.base.configs import find_config
from usl_lightning.base.documents import document_text
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import noting, write_json, write_text
from usl_lightning.base.typed import home, options
from usl_lightning.chain import slurm
from usl_lightning.chain.figures import check_figure
from usl_lightning.chain.file import Stage, check_run_name
from usl_lightning.chain.options import WANDB, RunOptions, check_launcher, words_of
from usl_lightning.chain.pipeline import conclude, run_chain, stage_command
from usl_lightning.chain.plan import Plan
from usl_lightning.chain.sources import check_sources, check_taken
from usl_lightning.chain.table_keys import POOL, adopted, check_same_version, is_linked, linked, unlinked
from usl_lightning.chain.table_results import FILES, Figures, write_results
from usl_lightning.chain.table_spec import Cell, Table
from usl_lightning.chain.waiting import WAITING
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.given import unwritable
from usl_lightning.stage.possible import check_possible
from usl_lightning.stage.words import StageCommand

FAILED = 1
"""Exit code of `usl table` when some cell has failed."""

_WAITS = "waits for labels"

_OWN = ("name", "out", "dry-run", "slurm", "slurm-header", "wandb", "only", "launcher")


@dataclass
class TableRun:
    """A table, and what is to be done with it.

    Attributes:
        table, cells: what it holds.
        out: the folder of all runs; the table's is `name` in it.
        passed: options that each cell's `usl run` gets.
        typed: the arguments, but those that are about SLURM.
        problems: of the cells that failed: cell -> why.
        failed: names in the pool of the stages that failed, which are not tried again.
    """

    table: Table
    cells: list[Cell]
    out: Path
    name: str
    passed: list[str]
    typed: list[str]
    only: str | None = None
    dry_run: bool = False
    slurm: str | None = None
    slurm_header: Path | None = None
    problems: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    _complete: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Of the table."""
        return self.out / self.name

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "TableRun":
        """Read the arguments after `usl table`.

        Raises:
            UslError: no table, or an option that means nothing.
        """
        if not arguments or arguments[0].startswith("-"):
            raise UslError("usl table: expected a table, e.g. usl table digits_table.yaml; `usl configs` lists them")
        path, given = find_config(arguments[0]), options(arguments[1:])
        own = {key: value for key, value in given if key in _OWN}
        for key in ("name", "out", "only", "metric"):
            if dict(given).get(key, "x") in ("", "true"):
                raise UslError(f"usl table: --{key}: its value is missing")
        if own.get("slurm", "print") not in ("true", "print", "submit"):
            raise UslError(f"usl table: --slurm {own['slurm']}: expected print or submit")
        if "slurm-header" in own and "slurm" not in own:
            raise UslError("usl table: --slurm-header: is for jobs of SLURM; give --slurm too, or leave it out")
        if (wandb := own.get("wandb", "true")) not in WANDB:
            raise UslError(f"usl table: --wandb {wandb}: expected online or offline")
        if "slurm" not in own:
            check_launcher(words_of(own.get("launcher", "")))
        check_run_name(own.get("name", path.stem), "usl table: --name")
        table = Table.read(path, {key: value for key, value in given if key not in _OWN})
        typed = [str(arguments[0]), *(f"--{key}={value}" for key, value in given if not key.startswith("slurm"))]
        return cls(
            table,
            table.cells(),
            home(own.get("out", "runs")),
            own.get("name", path.stem),
            [f"--{key}={own[key]}" for key in ("wandb", "launcher") if key in own],
            typed,
            own.get("only"),
            "dry-run" in own,
            {"true": "print"}.get(own.get("slurm", ""), own.get("slurm")),
            home(own["slurm-header"]) if "slurm-header" in own else None,
        )

    def complete(self, name: str) -> bool:
        """Whether a stage is, by its name in the pool."""
        if name not in self._complete and StageFolder(self.folder / POOL / name).complete:
            self._complete.add(name)
        return name in self._complete

    def work(self) -> dict[str, tuple[Cell, Stage]]:
        """Of the stages that are not complete, each once: name in the pool -> the first cell that has it, in order."""
        found: dict[str, tuple[Cell, Stage]] = {}
        for cell in self.cells:
            for stage in cell.stages:
                name = cell.pool[stage.name]
                if name not in found and not self.complete(name):
                    found[name] = cell, stage
        return found


def main(arguments: Sequence[str]) -> None:
    """Run what is missing of a table, write and print it; exits with 1 if a cell failed, 3 if one waits for labels.

    Raises:
        UslError: a mistake in the table or its options; before anything runs.
    """
    run = TableRun.parse(arguments)
    _check_folder(run.folder)
    work = run.work()
    if work and (problem := unwritable(run.folder)):
        raise UslError(f"{problem}; choose another --name or --out")
    with noting():
        _check(run, work)
    if run.slurm is not None:
        return _queue(run, work)
    if run.dry_run:
        return _tell(run, work)
    with nullcontext() if run.only else StageFolder(run.folder).locked():
        if run.only:
            _one(run, work)
        else:
            _all(run, work)
    if run.problems:
        sys.exit(WAITING if set(run.problems.values()) == {_WAITS} else FAILED)


def _check_folder(folder: Path) -> None:
    """Refuse the folder of something else, which would be written into."""
    if Plan.read(folder) is not None or StageFolder(folder).record() is not None:
        raise UslError(f"{folder}: is the folder of a run; give the table another --name")
    for name in () if (folder / POOL).is_dir() else FILES:
        if os.path.lexists(folder / name):
            raise UslError(f"{folder / name}: is there already, and of no table; move it, or give another --name")


def _check(run: TableRun, work: Mapping[str, tuple[Cell, Stage]]) -> None:
    """Refuse what can be seen to be wrong with any stage, before the first of them starts."""
    for (name, metric), cell in {cell.metric: cell for cell in run.cells}.items():
        check_figure(metric, next(stage for stage in cell.stages if stage.name == name))
    wandb = next((WANDB[word.partition("=")[2]] for word in run.passed if word.startswith("--wandb=")), None)
    for cell, stage in work.values():
        try:
            command, earlier = replace(_command(stage), wandb=wandb), _before(stage, cell)
            check_sources(stage, earlier, run.folder)
            check_parameters(command)
            check_possible(command, here=run.slurm is None and not any("--launcher=" in word for word in run.passed))
            check_taken(stage, command, earlier)
        except UslError as error:
            where = f"stage {stage.name} (row '{cell.row}', column '{cell.column}')"
            raise UslError(f"{run.table.path}: {where}: {str(error).removeprefix('--')}") from error
    done = {cell.pool[s.name]: s for cell in run.cells for s in cell.stages if cell.pool[s.name] not in work}
    for name, stage in done.items():
        check_same_version(StageFolder(run.folder / POOL / name), stage)


def _command(stage: Stage) -> StageCommand:
    return StageCommand(stage.command, [stage.config], dict(stage.set))


def _before(stage: Stage, cell: Cell) -> dict[str, StageCommand]:
    """Name -> command of the stages before one in a cell."""
    earlier = takewhile(lambda each: each.name != stage.name, cell.stages)
    return {each.name: _command(each) for each in earlier}


def _tell(run: TableRun, work: Mapping[str, tuple[Cell, Stage]]) -> None:
    for name, (cell, stage) in work.items():
        begun = StageFolder(run.folder / POOL / name).record() is not None
        print(f"{name}: would {'resume' if begun else 'run'} {stage.config.name}, first for {cell}")
    count = sum(any(name in work for name in cell.pool.values()) for cell in run.cells)
    print(f"{len(run.cells)} cells, {count} of them to do: {len(work)} stages")


def _all(run: TableRun, work: Mapping[str, tuple[Cell, Stage]]) -> None:
    """All cells, then the table; also when it is interrupted."""
    try:
        for number, cell in enumerate(run.cells, 1):
            if any(name in work for name in cell.pool.values()):
                print(f"cell {number} of {len(run.cells)}: {cell}", flush=True)
            _cell(run, cell)
    finally:
        figures = Figures.read(run.table, run.cells, run.folder / POOL, run.problems)
        print(figures.text())
        if any(run.complete(name) for cell in run.cells for name in cell.pool.values()):
            print(f"{run.folder}: {', '.join(write_results(figures, run.folder, again=bool(work)))}")
        print(f"next: {_what_next(run)}")


def _what_next(run: TableRun) -> str:
    """The command that goes on with the table."""
    done = [cell.name for cell in run.cells if (run.folder / cell.name / "summary.json").exists()]
    if len(done) < len(run.cells):
        return shlex.join(["usl", "table", *run.typed])
    return f"{shlex.join(['usl', 'report', str(run.folder / done[0])])} shows the first run"


def _one(run: TableRun, work: Mapping[str, tuple[Cell, Stage]]) -> None:
    """The stage that a job of an array is for."""
    known = {name for cell in run.cells for name in cell.pool.values()}
    if run.only not in known:
        raise UslError(f"usl table: --only {run.only}: no cell of the table has it; was the table changed since?")
    if run.only in work:
        cell, stage = work[run.only]
        with _failing(run, cell, stage):
            _stage(run, cell, stage)


def _cell(run: TableRun, cell: Cell) -> None:
    """Whatever is missing of a cell; a failure is noted, and the others go on."""
    place = run.folder / cell.name
    if (place / "summary.json").exists() and all(
        is_linked(place, stage.name, cell.pool[stage.name]) and run.complete(cell.pool[stage.name])
        for stage in cell.stages
    ):
        return
    for stage in cell.stages:
        if cell.pool[stage.name] in run.failed:
            run.problems[cell.name] = f"needs {stage.name}, which failed"
            return
        with _failing(run, cell, stage):
            _stage(run, cell, stage)
        if cell.name in run.problems:
            return
    conclude(_options(run, cell))


@contextmanager
def _failing(run: TableRun, cell: Cell, stage: Stage) -> Iterator[None]:
    """Note what goes wrong with a stage, and go on."""
    try:
        yield
    except (UslError, OSError) as error:
        run.problems[cell.name] = printable(str(error), 300)
    except SystemExit as end:
        failed = f"stage {stage.name} failed with exit code {end.code}"
        run.problems[cell.name] = _WAITS if end.code == WAITING else failed
    if cell.name in run.problems:
        run.failed.add(cell.pool[stage.name])
        print(f"usl table: {cell}: {run.problems[cell.name]}", file=sys.stderr, flush=True)


def _options(run: TableRun, cell: Cell) -> RunOptions:
    """What the cell's own `usl run` comes to; its chain is written where that finds it."""
    path, text = run.folder / cell.name / "chain.yaml", document_text(cell.content)
    if not path.exists() or read_file(path) != text.encode():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    options = RunOptions.parse([str(path), f"--name={cell.name}", f"--out={run.folder}", *run.passed])
    options.brief = True
    return options


def _stage(run: TableRun, cell: Cell, stage: Stage) -> None:
    """Link a stage, and run it unless it is complete, here or in another run."""
    place = run.folder / cell.name
    options = _options(run, cell)
    options.only = stage.name
    for earlier in cell.stages:
        linked(place, earlier.name, cell.pool[earlier.name])
        if earlier is stage:
            break
    folder = options.folder(stage.name)
    plan = Plan.of(options.typed, options.seed, options.chain.stages)
    try:
        if folder.record() is None:
            known = adopted(folder, stage_command(options, stage).identity(), run.out)
            if known is not None:
                print(f"{stage.name}: taken from {known}", flush=True)
        if not folder.complete:
            run_chain(options)
    finally:
        unlinked(folder)
        if folder.record() is not None:
            write_json(place / "run.json", asdict(plan))


def _queue(run: TableRun, work: Mapping[str, tuple[Cell, Stage]]) -> None:
    """Print or submit an array of jobs for each step of the chains, and a last job for the table."""
    header = slurm.HEADER if run.slurm_header is None else slurm.read_header(run.slurm_header)
    depth: dict[str, int] = {}
    for cell in run.cells:
        for stage in cell.stages:
            name = cell.pool[stage.name]
            depth[name] = max([depth[cell.pool[n]] + (cell.pool[n] in work) for n in stage.needs()], default=0)
    levels = [[name for name in work if depth[name] == level] for level in sorted({depth[name] for name in work})]
    jobs = slurm.arrays(run.name, levels, run.folder, run.typed, header)
    if run.slurm == "submit" and not run.dry_run:
        slurm.submit(jobs, run.folder)
    else:
        slurm.show(jobs)
