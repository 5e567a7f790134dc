"""Section of a report on labelling in rounds: accuracy against labels, and what each round added."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from usl_lightning.labels import LabelIndex
from usl_lightning.report.estimates import NONE, estimate
from usl_lightning.report.markup import Html, Names, section, table, tag
from usl_lightning.report.results import accuracy
from usl_lightning.report.run import RunReport, StageReport
from usl_lightning.report.svg import Lines, is_number, line_chart

NAMED = 12
"""Classes of a round whose numbers are told, at most: the most frequent."""


@dataclass(frozen=True)
class Round:
    """One of them.

    Attributes:
        selection: what chose its images.
        index: all labels so far.
        added: class of each image that is new, None where it has none.
        classifier: trained from the labels so far; None if that has yet to begin.
    """

    selection: StageReport
    index: LabelIndex
    added: list[int | None]
    classifier: StageReport | None


def rounds(run: RunReport, names: Names) -> Html | None:
    """A chart of the accuracy, and a table with a row for each round. None if there is no second round."""
    found = list(_rounds(run))
    if len(found) < 2:
        return None
    series: dict[str, list[tuple[float, float]]] = {
        title: [
            (_labelled(each.index), float(value))
            for each in found
            if each.classifier is not None and is_number(value := each.classifier.metrics.get(metric))
        ]
        for title, metric in (
            ("on test images", "test_accuracy"),
            ("estimate", "estimated_accuracy"),
        )
    }
    series |= {f"{end} end of the estimate": _ends(found, i) for i, end in enumerate(("lower", "upper"))}
    series = {title: points for title, points in series.items() if points}
    chart = line_chart(Lines("Accuracy against labels", series, percent=True, unit="label"), names) if series else None
    header = (
        "Round",
        "Chosen by",
        "Added",
        "Labels",
        "Test accuracy",
        "Estimated accuracy",
        "Classes of what it added",
    )
    rows = [
        (
            number, each.selection.model, len(each.added), _labelled(each.index),
            accuracy(each.classifier) if each.classifier else NONE, estimate(each.classifier), _classes(each),
        )
        for number, each in enumerate(found, 1)
    ]  # fmt: skip
    return section("rounds", "Rounds", chart and tag("div", chart, class_="charts"), table(_TITLE, header, rows))


_TITLE = "What each round added"


def _rounds(run: RunReport) -> Iterator[Round]:
    """Those of the chain, the first of them the selection that keeps nothing and is kept by another."""
    kept_names = {str(stage.config.get("model.keep_from", "")).rpartition("/")[0] for stage in run.selections}
    for stage in run.selections:
        kept, index = run.labels_of(stage, "model.keep_from"), stage.chosen
        first = kept is None and any(name.rpartition("/")[2] == stage.name for name in kept_names)
        if index is None or (kept is None and not first):
            continue
        before = set() if kept is None else set(kept.indices)
        new = [label for i, label in zip(index.indices, index.labels, strict=True) if i not in before]
        yield Round(stage, index, new, _classifier(run, stage))


def _classifier(run: RunReport, selection: StageReport) -> StageReport | None:
    end = f"{selection.name}/{selection.folder.labels.name}"
    return next((each for each in run.stages if str(each.config.get("data.labels", "")).endswith(end)), None)


def _labelled(index: LabelIndex) -> int:
    return sum(label is not None for label in index.labels)


def _ends(found: list[Round], which: int) -> list[tuple[float, float]]:
    """Labels and one end of the estimate's interval, of the rounds that have one."""
    points: list[tuple[float, float]] = []
    for each in found:
        interval = each.classifier.metrics.get("estimated_interval") if each.classifier else None
        if interval is not None:
            points.append((_labelled(each.index), float(interval[which])))
    return points


def _classes(each: Round) -> str:
    """`cat 3, dog 1`, the most frequent first."""
    counts = Counter(label for label in each.added if label is not None).most_common()
    names = [f"{each.index.classes[label] if each.index.classes else label} {count}" for label, count in counts]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} classes more" if len(names) > NAMED else "") or NONE
