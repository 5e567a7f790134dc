"""Sections of a report on training: learning curves, and which classes are taken for which."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from usl_lightning.base.arrays import load_array
from usl_lightning.base.errors import UslError
from usl_lightning.report.evaluations import NETWORKS, is_confusion
from usl_lightning.report.markup import Child, Html, Names, render, section, table, tag
from usl_lightning.report.run import Curves, RunReport, StageReport
from usl_lightning.report.svg import Lines, figure, line_chart

TITLES = {
    "test_accuracy": "Test accuracy (EMA)",
    "test_accuracy_online": "Test accuracy, online network",
    "knn_accuracy": "Accuracy of a kNN classifier on the features",
    "loss": "Loss",
    "supervised_loss": "Loss of the labelled images",
    "unsupervised_loss": "Loss of the unlabelled images",
    "mask_rate": "Unlabelled images that teach (mask rate)",
    "pseudo_label_accuracy": "Accuracy of the pseudo-labels",
    "pseudo_label_rate": "Images with a pseudo-label",
    "guess_balance": "Balance of the pseudo-labels' classes",
    "guesses_max": "Share of pseudo-labels of the commonest class",
    "guesses_mean": "Share of pseudo-labels of a class, on average",
    "guesses_min": "Share of pseudo-labels of the rarest class",
    "embedding_std": "Spread of the embeddings (0: collapsed)",
    "feature_std": "Spread of the features (0: collapsed)",
    "test_calibration_error": "Calibration error",
    "lr": "Learning rate",
}
"""What is logged, in the order shown; what is not named comes before the learning rate."""

CHARTS = 12
"""Of a method, at most; all numbers are in metrics.csv."""

CONFUSED = 20
"""Classes of a confusion matrix that is shown whole; of more, the pairs that are confused most."""

_OF_CLASS = re.compile(r"(\w*?)_(\d+|min|median|max)")


def learning_curves(run: RunReport, names: Names) -> Html | None:
    """A chart for each metric of each method, a line for each stage, and a table of the last values."""
    methods: dict[str, list[StageReport]] = {}
    for stage in run.stages:
        if stage.curves:
            methods.setdefault(stage.model, []).append(stage)
    parts = [_method(model, stages, names) for model, stages in methods.items()]
    if not parts:
        return None
    return section("curves", "Learning curves", *parts)


def _method(model: str, stages: Sequence[StageReport], names: Names) -> Html:
    curves = {stage.name: folded(stage.curves) for stage in stages}
    metrics = sorted({name for each in curves.values() for name in each}, key=_place)
    charts: list[Html] = []
    for metric in metrics:
        series = {name: each[metric] for name, each in curves.items() if metric in each}
        if len(charts) < CHARTS and any(len(points) > 1 for points in series.values()):
            charts.append(line_chart(Lines(title_of(metric), series, is_share(metric)), names))
    rows = [
        (title_of(metric), *(_last(each.get(metric, ()), is_share(metric)) for each in curves.values()))
        for metric in metrics
    ]
    values = table(f"{model}: last values", ("Metric", *curves), rows)
    return render(tag("h3", model), tag("div", charts, class_="charts"), values)


def folded(curves: Curves) -> Curves:
    """Values of single classes, `thresholds_0`, `thresholds_1`, …, as their least, mean and largest."""
    out: Curves = {}
    by_class: dict[str, dict[int, list[float]]] = {}
    for name, points in curves.items():
        match = _OF_CLASS.fullmatch(name)
        if match is None or not match[2].isdigit():
            out[name] = points
            continue
        for step, value in points:
            by_class.setdefault(match[1], {}).setdefault(step, []).append(value)
    for name, steps in by_class.items():
        for word, of in (("min", min), ("mean", lambda values: sum(values) / len(values)), ("max", max)):
            out[f"{name}_{word}"] = [(step, of(values)) for step, values in sorted(steps.items())]
    return out


def title_of(metric: str) -> str:
    """A metric in words."""
    if metric in TITLES:
        return TITLES[metric]
    base, _, word = metric.rpartition("_")
    ends = {"min": "least of the classes", "mean": "mean of the classes", "max": "largest of the classes"}
    words = f"{base.replace('_', ' ')}, {ends[word]}" if base and word in ends else metric.replace("_", " ")
    return words[:1].upper() + words[1:]


def is_share(metric: str) -> bool:
    """Whether its values are fractions of 1, by its name."""
    return metric.endswith(("accuracy", "accuracy_online", "_rate", "calibration_error", "calibration_error_online"))


def _place(metric: str) -> tuple[int, str]:
    order = list(TITLES)
    return (order.index(metric) if metric in TITLES else len(order) - 2), metric


def _last(points: Sequence[tuple[float, float]], percent: bool) -> str:
    return f"{figure(points[-1][1], percent)} (step {points[-1][0]:,})" if points else "–"


# the confusion matrix ------------------------------------------------------------------------------------


def confusions(run: RunReport) -> Html | None:
    """For each classifier that was tested, which classes it takes for which."""
    parts: list[Html] = []
    for stage in run.stages:
        scores = next((found for name in NETWORKS if (found := stage.evaluation.get(name))), None)
        if isinstance(scores, Mapping):
            parts.append(_confusion(stage, scores, stage.evaluation.get("classes", ())))
    if not parts:
        return None
    note = "Rows are the true classes, columns what the classifier (EMA) takes the images for."
    return section("confusions", "Which classes are confused", tag("p", note, class_="note"), *parts)


def _confusion(stage: StageReport, scores: Mapping[str, Any], classes: Sequence[str]) -> Html:
    matrix = _matrix(stage, scores["confusion"], len(classes))
    caption = f"{stage.name}: {scores['images']:,} test images"
    if len(classes) > CONFUSED:
        header = ("True class", "Taken for", "Images", "Share of the class")
        return table(f"{caption}, the {CONFUSED} most confused pairs", header, _pairs(matrix, classes))
    rows: list[tuple[Child, ...]] = []
    for name, row in zip(classes, matrix, strict=True):
        total = sum(row)
        cells = [_cell(count, total, i == len(rows)) for i, count in enumerate(row)]
        rows.append((name, *cells, f"{row[len(rows)] / total:.1%}" if total else "–"))
    return table(caption, ("True \\ taken for", *classes, "Right"), rows, class_="confusion")


def _cell(count: int, total: int, right: bool) -> Html:
    share = count / total if total else 0.0
    return tag("td", count, class_="right" if right else "wrong" if count else "zero", style=f"--v:{share:.3f}")


def _pairs(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
    pairs = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:CONFUSED]
    return [(classes[i], classes[j], f"{count:,}", f"{count / sum(matrix[i]):.1%}") for count, i, j in worst]


def _matrix(stage: StageReport, confusion: Any, classes: int) -> list[list[int]]:
    """The counts, which are in a file of their own where there are many classes."""
    if not isinstance(confusion, str):
        return confusion  # type: ignore[no-any-return]
    path = stage.folder.path / confusion
    try:
        rows: list[list[int]] = load_array(path).tolist()
    except (FileNotFoundError, UslError) as error:
        raise UslError(f"{path}: cannot be read ({error}); `usl test` writes it again") from error
    if not is_confusion(rows, classes):
        raise UslError(f"{path}: expected {classes} rows of {classes} counts; `usl test` writes it again")
    return rows
