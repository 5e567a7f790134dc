"""Section of a report on what a classifier makes of the images: classes, the most unsure, labels that look wrong."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from usl_lightning.base.errors import UslError
from usl_lightning.report.images import open_images, thumbnails
from usl_lightning.report.markup import Child, Html, code, section, tag
from usl_lightning.report.run import RunReport, StageReport

if TYPE_CHECKING:
    from usl_lightning.data.images.source import ImageSource
    from usl_lightning.evaluation.told import Told

OF_CLASS, OF_ALL_CLASSES = 6, 120
"""Images of a class, and of all of them, at most."""

UNSURE, DOUBTED = 24, 24
"""Images that are most unsure, and labels that look wrong, at most."""

_UNSURE = (
    "Images without a label whose two likeliest classes are nearest to each other. Labels of images like these teach "
    "most: usl more RUN_DIR --budget N asks for those that help most, and usl label RUN_DIR --image NAME shows one of "
    "them."
)
_DOUBTED = (
    "Labels that the classifier would not have given while they were held out (confident learning, Northcutt et al., "
    "2021). Some are slips, some are images that are hard to tell."
)


def predictions(run: RunReport) -> Html | None:
    """What each classifier says of the images it learned from; None if none left its predictions."""
    parts = [part for stage in run.stages for part in _of_stage(run, stage)]
    return section("predictions", "Predictions", *parts) if parts else None


def _of_stage(run: RunReport, stage: StageReport) -> list[Child]:
    from usl_lightning.evaluation.told import PREDICTIONS, Told

    told = Told.read(stage.folder.files / f"{PREDICTIONS}.npz")
    if told is None:
        return []
    head = tag("h3", f"{stage.model} ({stage.name})")
    try:
        source = open_images(stage.config)
        if len(source) != len(told.labels):
            raise UslError(f"there are {len(source):,} images now, {len(told.labels):,} when it learned")
        return [head, *_by_class(told, source), *_most_unsure(told, source), *_doubted(run, stage, told, source)]
    except UslError as error:
        return [head, tag("p", f"The images cannot be shown: {error}", class_="note")]


def _by_class(told: "Told", source: "ImageSource") -> list[Child]:
    each = max(1, min(OF_CLASS, OF_ALL_CLASSES // len(told.classes)))
    parts: list[Child] = [
        tag("h4", "What is taken for each class"),
        tag("p", "From the surest to the least sure; in per cent how probable the class is.", class_="note"),
    ]
    for label, name in enumerate(told.classes[:OF_ALL_CLASSES]):
        count, rows = told.of_class(label, each)
        parts.append(tag("h5", f"{name}: {count:,} of {len(told.labels):,} images"))
        parts.append(_pictures(source, rows, [_said(told, row, source) for row in rows]))
    return parts


def _most_unsure(told: "Told", source: "ImageSource") -> list[Child]:
    rows = told.unsure(UNSURE)
    captions = [_said(told, row, source) for row in rows]
    return [tag("h4", "Most unsure"), tag("p", _UNSURE, class_="note"), _pictures(source, rows, captions)]


def _doubted(run: RunReport, stage: StageReport, told: "Told", source: "ImageSource") -> list[Child]:
    doubts = told.doubts()
    parts: list[Child] = [tag("h4", "Labels that look wrong")]
    if not doubts:
        return [*parts, tag("p", "None.", class_="note")]
    shown = doubts[:DOUBTED]
    captions = [
        (
            f"labelled {told.classes[each.given]}",
            [f"rather {told.classes[each.rather]}, {each.probability:.0%}", _name(source, each.row)],
        )
        for each in shown
    ]
    words = _DOUBTED if len(shown) == len(doubts) else f"{_DOUBTED} The first {len(shown)} of {len(doubts):,}."
    labels = str(stage.config.get("data.labels"))
    beside = [each for each in run.selections if labels.endswith(f"{each.name}/{each.folder.labels.name}")]
    file = str(beside[0].folder.labels) if beside else labels
    command = shlex.join(["usl", "label", file, "--image", _name(source, shown[0].row)])
    return [
        *parts, tag("p", words, class_="note"), _pictures(source, [each.row for each in shown], captions),
        tag("p", "To look at one of them again, the first here, and change what is wrong:"), code(command),
    ]  # fmt: skip


def _said(told: "Told", row: int, source: "ImageSource") -> tuple[str, list[str]]:
    return told.classes[int(told.labels[row])], [f"{float(told.probabilities[row]):.0%}", _name(source, row)]


def _name(source: "ImageSource", row: int) -> str:
    return source.files[row] if source.files else f"image {row}"


def _pictures(source: "ImageSource", rows: Sequence[int], captions: Sequence[tuple[str, list[str]]]) -> Html | None:
    if not rows:
        return None
    items = []
    for picture, (title, facts) in zip(thumbnails(source, rows), captions, strict=True):
        image = tag(
            "img", src=picture.uri, alt=f"{title}, {', '.join(facts)}", width=picture.width, height=picture.height,
            class_="tiny" if picture.tiny else None,
        )  # fmt: skip
        caption = tag("figcaption", tag("strong", title), [tag("span", fact) for fact in facts])
        items.append(tag("li", tag("figure", image, caption)))
    return tag("ul", items, class_="gallery")
