"""Parts of a report on how good a classifier is by its labels alone: the estimate, what more would bring, how sure."""

from collections.abc import Sequence

from usl_lightning.report.markup import Child, Html, Names, tag
from usl_lightning.report.run import StageReport
from usl_lightning.report.svg import Lines, figure, is_number, line_chart

NONE = "–"

POINTS = 6
"""Of a line of reliability, at most: each stands for about as many labels."""

_NOTE = (
    "The estimate is told by the labels alone: by what was said of each while it was held out, and by how sure the "
    "classifier is of the images that nobody labelled. Its interval holds the truth nine times in ten."
)
_TOO_FEW = (
    "there are too few labels to tell how often it is right; at least 10 are needed whose class has another, or images "
    "kept aside in class folders, test/CLASS."
)


def estimate(stage: StageReport | None) -> str:
    """`79.0% (64.7% to 90.7%)`: the accuracy by the labels alone, and the ends of its interval; else a dash."""
    metrics = stage.metrics if stage else {}
    value, interval = metrics.get("estimated_accuracy"), metrics.get("estimated_interval")
    if not is_number(value) or interval is None:
        return NONE
    low, high = (figure(end, percent=True) for end in interval)
    return f"{figure(value, percent=True)} ({low} to {high})"


def estimates(found: Sequence[StageReport], names: Names) -> list[Child]:
    """What the labels say of each classifier that they can say anything of, in words and as a chart.

    Args:
        found: classifiers.
        names: of the page.
    """
    parts: list[Child] = []
    if any(estimate(stage) != NONE for stage in found):
        parts.append(tag("p", _NOTE, class_="note"))
    for stage in found:
        judged = stage.evaluation.get("judged_by_labels")
        if judged is None or not stage.complete:
            continue
        name = tag("strong", f"{stage.model} ({stage.name}): ")
        if estimate(stage) == NONE:
            if not is_number(stage.metrics.get("test_accuracy")):
                parts.append(tag("p", name, _TOO_FEW))
            continue
        parts += [tag("p", name, _said(stage)), _reliability(stage.name, judged["reliability"], names)]
    return parts


def _reliability(stage: str, bins: Sequence[Sequence[float]], names: Names) -> Html:
    right = [(100 * sure / count, good / count) for count, good, sure in merged(bins)]
    lines = {"held-out labels": right, "as sure as right": [(0.0, 0.0), (100.0, 1.0)]}
    chart = Lines(f"How often it is right, by how sure it is: {stage}", lines, percent=True, unit="confidence in %")
    return tag("div", line_chart(chart, names), class_="charts")


def _said(stage: StageReport) -> str:
    """The estimate in a sentence, and what more labels would bring, if that can be told."""
    count = stage.metrics.get("estimated_from")
    text = f"about {estimate(stage)} of the images that nobody labelled are told rightly, by {count} labels."
    more = stage.metrics.get("estimated_with_40_more")
    return (
        text if not is_number(more) else f"{text} With 40 labels more it would be about {figure(more, percent=True)}."
    )


def merged(bins: Sequence[Sequence[float]], most: int = POINTS) -> list[tuple[float, float, float]]:
    """Neighbouring bins of confidence as one, until each holds about as many; the sums of their three figures.

    Args:
        bins: of each how many labels, those told rightly, and the sum of confidences, the least sure first.
        most: as many are left at most.
    """
    enough = sum(each[0] for each in bins) / most
    found, held = [], (0.0, 0.0, 0.0)
    for count, good, sure in bins:
        held = held[0] + count, held[1] + good, held[2] + sure
        if held[0] >= enough > 0:
            found.append(held)
            held = (0.0, 0.0, 0.0)
    return [*found, held] if held[0] > 0 else found
