"""Sections of a report that say how it went: results, figures of each stage, times, commands, machine."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from usl_lightning.labels import LabelIndex
from usl_lightning.report.estimates import NONE, estimate, estimates
from usl_lightning.report.markup import Child, Html, Names, code, section, table, tag
from usl_lightning.report.run import RunReport, StageReport, read_curves
from usl_lightning.report.svg import figure, is_number


def results(run: RunReport, names: Names) -> Html | None:
    """The headline: what each classifier gets right, and from which labels. None if the run trains no classifier."""
    trained = [(stage, run.labels_of(stage)) for stage in run.stages if stage.trained]
    if not trained:
        return None
    told = any(estimate(stage) != NONE for stage, _ in trained)
    header = (
        "Labels chosen by", "Labels", "Classes covered", "Trained by", "Test accuracy",
        *(["Estimated accuracy"] if told else []), "Median of the last", "Calibration error", "Time",
    )  # fmt: skip
    rows = [
        (
            chosen_by(run, stage, index), _labelled(index), _covered(index), stage.model, accuracy(stage),
            *([estimate(stage)] if told else []), _share(stage, "test_accuracy_median"),
            _share(stage, "test_calibration_error"), duration(stage.seconds),
        )
        for stage, index in trained
    ]  # fmt: skip
    tiles = [_tile(run, stage, index) for stage, index in trained if _right(stage)]
    shown = tag("ul", tiles, class_="tiles") if tiles else None
    note = (
        None if told and not _tested(run) else tag("p", _UNMEASURED if _unmeasured(run) else _ACCURACY, class_="note")
    )
    parts = [shown, table("Classifiers", header, rows), note, *estimates([stage for stage, _ in trained], names)]
    return section("results", "Results", *parts)


_ACCURACY = (
    "Accuracy is that of the moving average of the weights (EMA) after the last step, on images that nothing was "
    "chosen or trained by. Beside it the median of the last 20 evaluations of the training, if it was evaluated on the "
    "way. The calibration error (ECE, Guo et al., 2017) is the mean gap between how sure the classifier is and how "
    "often it is right; 0% is best."
)
_UNMEASURED = (
    "How often the classifier is right is not known: no image with a known class was kept aside to measure it on. A "
    "look at some of its predictions (usl predict) tells."
)


def _tested(run: RunReport) -> bool:
    """Whether a classifier was measured on test images."""
    return any(is_number(stage.metrics.get("test_accuracy")) for stage in run.stages if stage.trained)


def _unmeasured(run: RunReport) -> bool:
    """Whether classifiers were trained, none could be measured, and of none the labels tell how good it is."""
    trained = [stage for stage in run.stages if stage.complete and stage.trained]
    return bool(trained) and not any(map(_right, trained))


def _right(stage: StageReport) -> tuple[float, str] | None:
    """How often a classifier is right, and how that is known: on test images, else by its labels; None: not at all."""
    for key, how in (("test_accuracy", ""), ("estimated_accuracy", "estimated")):
        if is_number(value := stage.metrics.get(key)):
            return float(value), how
    return None


def headline(run: RunReport) -> str:
    """The run in a sentence."""
    best = [s for s in run.stages if is_number(s.metrics.get("test_accuracy")) and s.trained]
    told = [s for s in run.stages if estimate(s) != NONE and s.trained]
    if not best and told:
        said = [f"{estimate(s)} with {_from(run, s)}" for s in sorted(told, key=_by("estimated_accuracy"))]
        return f"Estimated accuracy: {'; '.join(said)}."
    if not best:
        done = sum(stage.complete for stage in run.stages)
        if _unmeasured(run) and not run.missing:
            return "Complete; there were no test images to tell the accuracy by."
        return f"{done} of {len(run.stages)} stages complete." if len(run.stages) > 1 else f"{run.stages[0].model}."
    said = [f"{accuracy(s)} with {_from(run, s)}" for s in sorted(best, key=_by("test_accuracy"))]
    return f"Test accuracy: {'; '.join(said)}."


def _by(metric: str) -> Callable[[StageReport], float]:
    """Sorts stages, the best first."""
    return lambda stage: -float(stage.metrics[metric])


def _from(run: RunReport, stage: StageReport) -> str:
    """`32 labels chosen by USL (Blend)`."""
    index = run.labels_of(stage)
    count = "its" if index is None else _labelled(index)
    return f"{count} labels chosen by {chosen_by(run, stage, index)} ({stage.model})"


def chosen_by(run: RunReport, stage: StageReport, index: LabelIndex | None) -> str:
    """Who chose the labels of a classifier: the selector's name, or what the label index says."""
    path = str(stage.config.get("data.labels", ""))
    for each in run.selections:
        if path.endswith(f"{each.name}/{each.folder.labels.name}"):
            return each.model
    return path.rpartition("/")[2] if index is None else str(index.method.get("name", path.rpartition("/")[2]))


def accuracy(stage: StageReport) -> str:
    """The test accuracy of a classifier, or why there is none."""
    value = stage.metrics.get("test_accuracy")
    if is_number(value):
        return figure(float(value), percent=True)
    return NONE if stage.complete else stage.state


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _labelled(index: LabelIndex | None) -> str:
    """How many images teach: those with a label; of an index without any, which the data set knows, all."""
    return NONE if index is None else f"{index.labelled or len(index) - len(index.unsure):,}"


def _covered(index: LabelIndex | None) -> str:
    if index is None or not index.classes or not index.labelled:
        return NONE
    return f"{len(set(index.labels) - {None})} of {len(index.classes)}"


def _share(stage: StageReport, name: str) -> str:
    value = stage.metrics.get(name)
    return figure(float(value), percent=True) if is_number(value) else NONE


def _tile(run: RunReport, stage: StageReport, index: LabelIndex | None) -> Html:
    value, how = _right(stage) or (0.0, "")
    count = "" if index is None else f"{_labelled(index)} labels chosen by "
    return tag(
        "li", tag("strong", figure(value, percent=True)), tag("span", f"{count}{chosen_by(run, stage, index)}"),
        tag("span", f"{stage.model}{', ' * bool(how)}{how}", class_="muted"), style=f"--v:{value:.4f}",
    )  # fmt: skip


def unfinished(run: RunReport) -> Html | None:
    """What is missing, and the command that goes on. None if nothing is."""
    if not run.missing:
        return None
    items = [tag("li", tag("strong", stage.name), f": {_progress(stage)}") for stage in run.missing]
    how: list[Child] = []
    if run.waiting:
        count = sum(stage.chosen.unlabelled for stage in run.waiting if stage.chosen)
        lines = [shlex.join(["usl", "label", str(stage.folder.labels)]) for stage in run.waiting]
        how += [tag("p", f"{count:,} chosen images have no label yet. Give them theirs:"), code("\n".join(lines))]
    if any(stage.state == "running" for stage in run.missing):
        how += [tag("p", "It is at work: this page shows how far it was, make it again to see more.")]
    elif run.next_command is None:
        how += [tag("p", "The command that made this folder goes on where it stopped.")]
    elif run.plan is None and not run.stages[0].folder.has_checkpoint:
        how += [tag("p", "Nothing of it was saved yet; this begins it again:"), code(run.next_command)]
    else:
        how += [tag("p", "Then this goes on:" if how else "This goes on where it stopped:"), code(run.next_command)]
    return section("unfinished", "Not finished", tag("ul", items), *how)


def _progress(stage: StageReport) -> str:
    total = stage.config.get("trainer.max_steps")
    reached = max((points[-1][0] for points in stage.curves.values()), default=0)
    where = f", step {reached:,} of {total:,} or later" if reached and isinstance(total, int) else ""
    return f"{stage.state}{where}"


def stage_figures(run: RunReport) -> Html | None:
    """Final figures of stages that are no classifiers: what features are worth, how good a choice is."""
    parts: list[Html] = []
    for stage in run.stages:
        if stage.command in ("fit", "propagate") and not stage.trained and stage.metrics:
            notes: Mapping[str, Any] = stage.evaluation.get("notes", {})
            values = {**stage.metrics, **stage.evaluation.get("metrics", {})}
            shown = {name: value for name, value in values.items() if is_number(value) and not name.endswith("_k")}
            rows = [(_words(name), figure(value), _text(notes.get(name, NONE))) for name, value in shown.items()]
            parts.append(table(f"{stage.name}: {stage.model}", ("Figure", "Value", "What was measured"), rows))
    chosen = [stage for stage in run.selections if stage.metrics]
    names = list(dict.fromkeys(k for s in chosen for k, v in s.metrics.items() if is_number(v)))
    if set(names) - {"budget"}:
        header = ("Choice", *(f"{stage.model} ({stage.name})" for stage in chosen))
        rows_of = [(_words(name), *(_value(stage.metrics.get(name)) for stage in chosen)) for name in names]
        parts.append(table("How good the chosen images are", header, rows_of))
        parts.append(tag("p", _CHOICE, class_="note"))
    return section("figures", "Figures of the stages", *parts) if parts else None


_CHOICE = (
    "Balance: 1 if all classes are chosen equally often. Spread: mean distance from a chosen image to the nearest "
    "other one. Coverage distance: mean distance from any image to the nearest chosen one. Propagated accuracy: how "
    "often the label of the nearest chosen image fits. Distances are between normalised features. These figures "
    "read the labels of all images where the data set has them; nothing was chosen by them."
)


def _value(value: Any) -> str:
    return figure(float(value)) if is_number(value) else NONE


def _text(words: str) -> Html:
    """A cell whose text may go over several lines."""
    return tag("td", words, class_="text")


_SHORT = {"knn": "kNN", **{word: word.upper() for word in ("nmi", "ari", "ami", "fc", "pca", "sgd")}}


def _words(name: str) -> str:
    first, *others = name.split("_")
    return " ".join([_SHORT.get(first, first.capitalize()), *(_SHORT.get(word, word) for word in others)])


def times(run: RunReport) -> Html:
    """Where the time went."""
    total = sum(stage.seconds or 0 for stage in run.stages)
    rows = [(s.name, f"usl {s.command}", s.model, s.state, _bar(s.seconds or 0, total), _speed(s)) for s in run.stages]
    header = ("Stage", "Command", "Method", "State", "Time", "Images a second")
    return section("times", "Time", tag("p", f"{duration(total)} in all."), table("Time of each stage", header, rows))


def _bar(seconds: float, total: float) -> Html:
    if not seconds:  # not begun
        return tag("td", NONE)
    return tag("td", duration(seconds), class_="bar", style=f"--v:{seconds / total if total else 0:.3f}")


def _speed(stage: StageReport) -> str:
    """The median speed of training, in images of all kinds a second."""
    points = read_curves(stage.folder.path / "speed.csv").get("images_per_second", [])
    values = sorted(value for _, value in points)
    return f"{values[len(values) // 2]:,.0f}" if values else NONE


def commands(run: RunReport) -> Html:
    """What to type to get the same again."""
    parts: list[Child] = []
    if run.repetition is not None:
        parts += [tag("p", "The whole run again, in a folder of another name:"), code(run.repetition)]
        people = [stage for stage in run.selections if stage.complete and _labelled_by_people(stage)]
        if people:
            lines = "\n".join(line for stage in people for line in _takeover(stage))
            parts += [tag("p", "It stops where labels are needed. Those of this run can be taken over:"), code(lines)]
    alone = [stage.command_of(Path("runs/again", stage.name)) for stage in run.stages if stage.config]
    if alone:
        parts += [tag("p", "A stage alone, with every parameter as it was:"), code("\n".join(alone))]
    return section("commands", "To get the same again", *parts)


def _labelled_by_people(stage: StageReport) -> bool:
    """Whether the chosen images got their labels after they were chosen."""
    index = stage.chosen
    return index is not None and len(index) > index.unlabelled and "classes_covered" not in stage.metrics


def _takeover(stage: StageReport) -> Iterator[str]:
    """Commands that hand the labels of a selection to that of the run's repetition."""
    labels, answers = stage.folder.labels, f"{stage.name}_answers.csv"
    again = labels.parent.parent.parent / "again" / stage.name / labels.name
    yield shlex.join(["usl", "labels", "export", str(labels), "--out", answers])
    yield shlex.join(["usl", "labels", "import", str(again), answers])


def machine(run: RunReport, here: Mapping[str, str]) -> Html:
    """Versions and machine of each stage; one list if all are the same.

    Args:
        run: the run.
        here: those of the process that makes the page.
    """
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in run.stages:
        if stage.record is not None:
            found.setdefault(tuple(_told(stage)), []).append(stage.name)
    parts: list[Child] = []
    for facts, names in found.items():
        parts.append(tag("h3", "All stages" if len(found) == 1 else ", ".join(names)))
        parts.append(_facts(facts))
    return section("machine", "Versions and machine", *parts, tag("h3", "This page"), _facts(here.items()))


def _told(stage: StageReport) -> Iterator[tuple[str, str]]:
    record = stage.record or {}
    yield "usl-lightning", str(record["identity"].get("version", NONE))
    yield from ((str(name), str(value)) for name, value in record.get("machine", {}).items())
    precision = stage.config.get("trainer.precision")
    if precision is not None:
        yield "precision", str(precision)


def _facts(facts: Any) -> Html:
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in facts])
