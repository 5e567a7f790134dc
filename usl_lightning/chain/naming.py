"""A run by its folder: what `runs/photos` means to a command that looks at one stage. Imports nothing heavy."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.files import not_a_folder
from usl_lightning.base.typed import home
from usl_lightning.chain.plan import Plan
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.folder import StageFolder

NAMING = ("test", "validate", "predict", "export")
"""Stage commands that take a run's folder in place of --config and --ckpt_path."""


def spelled_out(command: str, words: Sequence[str]) -> list[str]:
    """`RUN [FOLDER] --KEY VALUE …` as the options that mean the same; other words as they are.

    Args:
        command: one of `NAMING`.
        words: after the command.

    Raises:
        UslError: no such folder, no trained classifier in it, or a word too many.
    """
    if command not in NAMING or not words or words[0].startswith("-"):
        return list(words)
    stage = classifier_in(home(words[0]), command)
    rest, more = list(words[1:]), list[str]()
    if command == "predict" and rest and not rest[0].startswith("-"):
        more = [f"--folder={rest.pop(0)}"]
    given = {word.lstrip("-").partition("=")[0] for word in rest if word.startswith("--")}
    ckpt = [] if "ckpt_path" in given else ["--ckpt_path=last"]
    return [f"--config={stage.path / 'config.yaml'}", f"--run_dir={stage.path}", *ckpt, *more, *rest]


def classifier_in(run: Path, command: str) -> StageFolder:
    """The trained classifier of a run: the stage itself, or the first of a chain that learned from labels.

    Where the chain has rounds, that of the last of them.

    Args:
        run: `runs/NAME`, or `runs/NAME/STAGE`.
        command: for the message.

    Raises:
        UslError: there is none.
    """
    stages = list(_stages(run, command))
    if len(stages) == 1 and stages[0].path == run:
        if command == "predict" and not _learned_from_labels(stages[0]):
            raise UslError(f"usl predict: {run}: no classifier; expected a stage that learned from labels")
        return stages[0]
    trained = [stage for stage in stages if stage.complete and _learned_from_labels(stage)]
    if not trained:
        plan = Plan.read(run)
        how = "" if plan is None else f"; `usl run {plan.arguments[0]}` goes on with it"
        raise UslError(f"usl {command}: {run}: no classifier is trained in this run yet{how}")
    selections = _Selections.of(run)
    by_labels = {selections.taken_by(stage.path.name): stage for stage in reversed(trained)}
    return by_labels[selections.last(selections.taken_by(trained[0].path.name), by_labels)]


def label_file_in(run: Path) -> Path:
    """The label file of a run that a person is to look at: the first that lacks answers, or else the first.

    Of rounds, each of which begins with the images of those before, that of the last.

    Raises:
        UslError: no such run, or nothing is selected in it yet.
    """
    there = {stage.path.name: stage.labels for stage in _stages(run, "label") if stage.labels.exists()}
    if not there:
        raise UslError(f"usl label: {run}: no images are selected in this run yet; `usl run` selects them")
    selections = _Selections.of(run)
    files = [there[str(selections.last(name, there))] for name in there]
    return next((path for path in files if LabelIndex.read(path).unlabelled), files[0])


@dataclass(frozen=True)
class _Selections:
    """Those of a chain.

    Attributes:
        needs: of each stage, the selections that it takes something from.
        after: selection -> that of the next round, which begins with its images.
    """

    needs: dict[str, list[str]]
    after: dict[str, str]

    @classmethod
    def of(cls, run: Path) -> "_Selections":
        plan = Plan.read(run)
        stages = () if plan is None else plan.stages
        chosen = {stage.name for stage in stages if stage.command == "select"}
        needs = {stage.name: [name for name in stage.needs if name in chosen] for stage in stages}
        return cls(needs, {before: name for name in chosen for before in needs[name]})

    def taken_by(self, stage: str) -> str | None:
        """The selection whose labels a stage learns from; None if that is none of the chain's."""
        return next(iter(self.needs.get(stage, ())), None)

    def last(self, selection: str | None, among: Container[str | None]) -> str | None:
        """The last round that goes on from a selection, of those there are."""
        while selection in self.after and self.after[selection] in among:
            selection = self.after[selection]
        return selection


def most_labels_in(run: Path) -> Path | None:
    """The label file of a run with the most labels: in rounds, that of the last one with answers. None without any.

    Raises:
        UslError: no such run, or a damaged file.
    """
    files = [stage.labels for stage in _stages(run, "init") if stage.labels.exists()]
    counts = [LabelIndex.read(path).labelled for path in files]
    return files[counts.index(max(counts))] if any(counts) else None


def own_training_in(run: Path) -> Path | None:
    """The checkpoint of what a run has trained without labels; None if it has finished no such stage.

    Raises:
        UslError: no such run.
    """
    stages = (stage for stage in _stages(run, "init") if stage.complete and not _learned_from_labels(stage))
    return next((stage.last_checkpoint for stage in stages if stage.has_checkpoint), None)


def _learned_from_labels(stage: StageFolder) -> bool:
    identity = (stage.record() or {}).get("identity", {})
    return identity.get("command") == "fit" and "data.labels" in identity


def _stages(run: Path, command: str) -> Iterator[StageFolder]:
    """The stages of a run that have begun, in the chain's order; itself, if it is one."""
    if not run.is_dir():
        near = did_you_mean(run.name, [path.name for path in run.parent.glob("*") if path.is_dir()])
        raise UslError(f"usl {command}: {run}: {not_a_folder(run)}{near}; expected that of a run, runs/NAME")
    if StageFolder(run).record() is not None:
        yield StageFolder(run)
        return
    plan = Plan.read(run)
    if plan is None:
        raise UslError(f"usl {command}: {run}: not the folder of a run; expected runs/NAME, which `usl run` makes")
    yield from (folder for each in plan.stages if (folder := StageFolder(run / each.name)).record() is not None)
