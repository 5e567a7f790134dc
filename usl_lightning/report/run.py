"""A run folder as a report needs it: what is there, and what is missing. Imports nothing heavy."""

import fcntl
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from usl_lightning.base.atomic import check_file, read_file
from usl_lightning.base.configs import load_yaml
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.files import not_a_folder, read_json
from usl_lightning.base.typed import home, options
from usl_lightning.chain.plan import Plan
from usl_lightning.labels import LabelIndex
from usl_lightning.report.evaluations import problem_of
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.identity import flatten

Curves = dict[str, list[tuple[int, float]]]

_MOST_STEPS = 10**15
"""A larger number is none of a step."""

_LARGEST = 1e100
"""A larger value is none that a chart shows."""


@dataclass(frozen=True)
class StageReport:
    """One stage and what it left so far.

    Attributes:
        folder: where it is.
        record: `stage.json`; None if it has not begun.
        command: `fit`, `select` or `propagate`.
    """

    folder: StageFolder
    record: Mapping[str, Any] | None
    command: str

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.path.resolve().name

    @property
    def complete(self) -> bool:
        """It has run to its end."""
        return self.record is not None and self.record.get("status") == "complete"

    @property
    def state(self) -> str:
        """In a word or two: complete, running, interrupted, not begun."""
        if self.record is None:
            return "not begun"
        if self.complete:
            return "complete"
        return "running" if held(self.folder.path) else "interrupted"

    @property
    def trained(self) -> bool:
        """It is to train a classifier from labels."""
        return self.command == "fit" and bool(self.config.get("data.labels"))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Final figures; empty until it is complete."""
        return (self.record or {}).get("metrics", {})

    @property
    def seconds(self) -> float | None:
        """Time spent, of a stage that is not complete up to the last metric that it noted; None if it has not begun."""
        if self.record is None:
            return None
        noted = 0.0
        if not self.complete:  # the record was written when it began, or stopped
            with suppress(OSError):
                written = self.folder.record_path.stat().st_mtime
                noted = max(0.0, (self.folder.path / "metrics.csv").stat().st_mtime - written)
        return round(float(self.record.get("seconds") or 0.0) + noted, 1)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Every parameter as a dotted key; empty if it has not begun."""
        path = self.folder.path / "config.yaml"
        return flatten(load_yaml(path)) if path.exists() else {}

    @property
    def model(self) -> str:
        """Class name of the method; its command if that is not known."""
        return str(self.config.get("model.class_path", self.command)).rpartition(".")[2]

    def command_of(self, run_dir: Path, *more: str) -> str:
        """The command of the stage alone, from its resolved configuration.

        Args:
            run_dir: its folder.
            more: words.
        """
        config = self.folder.path / "config.yaml"
        return shlex.join(["usl", self.command, f"--config={config}", f"--run_dir={run_dir}", *more])

    @cached_property
    def curves(self) -> Curves:
        """Metric -> (steps taken, value), by step, of `metrics.csv`; final figures belong to the last step."""
        last = self.config.get("trainer.max_steps")
        curves = read_curves(self.folder.path / "metrics.csv")
        if not isinstance(last, int) or last < 1:
            return curves
        return {name: [(min(step, last), value) for step, value in points] for name, points in curves.items()}

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """`evaluation.json`: what the test images say; empty if there is none."""
        path, advice = self.folder.path / "evaluation.json", "`usl test` writes it again"
        try:
            content = read_json(path, advice)
        except FileNotFoundError:
            return {}
        problem = problem_of(content)
        if problem is not None:
            raise UslError(f"{path}: not an evaluation, {problem}; {advice}")
        found: Mapping[str, Any] = content
        return found

    @cached_property
    def chosen(self) -> LabelIndex | None:
        """What a selection chose."""
        return LabelIndex.read(self.folder.labels) if self.folder.labels.exists() else None


@dataclass(frozen=True)
class RunReport:
    """A chain's folder, or that of a single stage.

    Attributes:
        folder: as it was given.
        plan: what `usl run` noted of it; None for a single stage, or a run of an earlier version.
        stages: in order; those of the plan that have not begun among them.
    """

    folder: Path
    plan: Plan | None
    stages: tuple[StageReport, ...]

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.resolve().name

    @property
    def selections(self) -> list[StageReport]:
        """Stages that have chosen images."""
        return [stage for stage in self.stages if stage.chosen is not None]

    @property
    def missing(self) -> list[StageReport]:
        """Stages that are not complete."""
        return [stage for stage in self.stages if not stage.complete]

    @property
    def command(self) -> str | None:
        """What makes the whole run, or continues it, and where if that is not here; None if it is not known."""
        if self.plan is None:
            return None
        words = list(self.plan.arguments)
        if not any(word.startswith("--name=") for word in words) and self.name != Path(words[0]).stem:
            words.append(f"--name={self.name}")  # the folder was renamed since
        return f"{self._change_folder}usl run {shlex.join(words)}"

    @property
    def repetition(self) -> str | None:
        """What makes the whole run again, in a folder of another name; None if it is not known."""
        if self.plan is None:
            return None
        words = [word for word in self.plan.arguments if not word.startswith("--name=")]
        return f"{self._change_folder}usl run {shlex.join(words)} --name=again"

    @property
    def _change_folder(self) -> str:
        """`cd FOLDER && ` to where `usl run` was typed, as far as the run's own place tells, unless that is here."""
        given = dict(options(self.plan.arguments[1:])) if self.plan else {}
        place = (*home(given.get("out", "runs")).parts, self.name)
        here = self.folder.resolve()
        root = Path(*here.parts[: -len(place)])
        if here.parts[-len(place) :] != place or root == Path.cwd():
            return ""
        return f"cd {shlex.quote(str(root))} && "

    @property
    def next_command(self) -> str | None:
        """What goes on with a run that is not complete; None if it is not known."""
        if self.plan is not None or len(self.stages) > 1 or not self.stages[0].config:
            return self.command
        stage = self.stages[0]
        return stage.command_of(stage.folder.path, *(["--ckpt_path=last"] if stage.folder.has_checkpoint else []))

    def labels_of(self, stage: StageReport, key: str = "data.labels") -> LabelIndex | None:
        """The label index that a classifier is trained from; None if it is not trained from one, or that is lost.

        A run that was moved or copied has its own beside the stage.

        Args:
            stage: of the run.
            key: the parameter that names the file; `model.keep_from`: what a selection kept.
        """
        path = self.label_file_of(stage, key)
        return None if path is None else LabelIndex.read(path)

    def label_file_of(self, stage: StageReport, key: str = "data.labels") -> Path | None:
        """The file of `labels_of`."""
        path = Path(str(stage.config.get(key) or ""))
        places = (stage.folder.path.parent / path.parent.name / path.name, path)
        return next((place for place in places if path.name and place.exists()), None)

    @property
    def waiting(self) -> list[StageReport]:
        """Selections whose images are to be labelled before the run can go on."""
        if not self.missing or self.plan is None:
            return []
        to_come = {stage.name for stage in self.missing}
        needed = {name for stage in self.plan.stages if stage.name in to_come for name in stage.needs}
        return [s for s in self.selections if s.complete and s.name in needed and s.chosen and s.chosen.unlabelled]


def read_run(folder: Path) -> RunReport:
    """Look into a run folder.

    Args:
        folder: `runs/NAME` of a chain, or of a single stage.

    Raises:
        UslError: it is no run folder, or nothing in it has begun.
    """
    if folder.name in ("", ".."):  # the one that one is in
        folder = folder.resolve()
    if not folder.is_dir():
        near = did_you_mean(folder.name, [path.name for path in folder.parent.glob("*") if path.is_dir()])
        raise UslError(f"usl report: {folder}: {not_a_folder(folder)}{near}; expected that of a run, runs/NAME")
    alone = _stage(folder)
    if alone is not None:
        return RunReport(folder, None, (alone,))
    plan = Plan.read(folder)
    begun = [stage for path in folder.iterdir() if (stage := _stage(path)) is not None and not _set_aside(path)]
    if not begun:
        reason = "nothing of this run has begun" if plan else "not the folder of a run, it holds no stage"
        expected = f"`usl run {shlex.join(plan.arguments)}` begins it" if plan else "expected runs/NAME"
        runs = [str(path) for path in sorted(folder.iterdir()) if (path / "run.json").is_file()]
        if runs and not plan:
            expected = f"expected one of the runs in it, {', '.join(runs[:4])}{', …' * (len(runs) > 4)}"
        raise UslError(f"usl report: {folder}: {reason}; {expected}")
    if plan is None:
        return RunReport(folder, None, tuple(sorted(begun, key=_first_written)))
    found = {stage.name: stage for stage in begun}
    stages = [found.get(s.name) or StageReport(StageFolder(folder / s.name), None, s.command) for s in plan.stages]
    return RunReport(folder, plan, tuple(stages))


def _stage(path: Path) -> StageReport | None:
    record = StageFolder(path).record() if path.is_dir() else None
    if record is None:
        return None
    return StageReport(StageFolder(path), record, str(record["identity"].get("command", "fit")))


def _set_aside(path: Path) -> bool:
    """Whether it is what `--redo` put aside."""
    return re.search(r"\.old\d+$", path.name) is not None


def _first_written(stage: StageReport) -> tuple[float, str]:
    """Sorts stages as they were begun."""
    path = stage.folder.path / "config.yaml"
    return (path.stat().st_mtime if path.exists() else 0.0), stage.name


def held(folder: Path) -> bool:
    """Whether a process is at work in the folder of a stage."""
    try:
        check_file(folder / ".lock")
        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_curves(path: Path) -> Curves:
    """Metric -> (step from 1, value) by step, of a file `step,name,value`.

    What is not finite, a last line that a kill cut, and what else is no such row, is left out.

    Args:
        path: of the file; there may be none.
    """
    curves: Curves = {}
    try:
        content = read_file(path)
    except OSError:
        return {}
    for line in content.decode("utf-8", "replace").splitlines()[1:]:
        try:
            step, name, value = line.split(",")
            point = int(step) + 1, float(value)
        except ValueError:
            continue
        if abs(point[1]) < _LARGEST and 0 < point[0] < _MOST_STEPS:
            curves.setdefault(name, []).append(point)
    return {name: sorted(points) for name, points in curves.items() if points}
