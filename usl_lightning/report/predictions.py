"""Section of a report on what a classifier makes of the images: classes, the most unsure, labels that look wrong."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from usl_lightning.base.errors import UslError
from usl_lightning.report.images import open_images, thumbnails
from usl_lightning.report.markup import Child, Html, code, section, tag
from usl_lightning.report.run import RunReport, StageReport
from usl_lightning.stage.label_page import make_page

if TYPE_CHECKING:
    from usl_lightning.data.images.source import ImageSource
    from usl_lightning.evaluation.told import Told

OF_CLASS, OF_ALL_CLASSES = 6, 120
"""Images of a class, and of all of them, at most."""

UNSURE, DOUBTED = 24, 24
"""Images that are most unsure, and labels that look wrong, at most."""

_UNSURE = (
    "Images without a label whose two likeliest classes are nearest to each other. Labels of images like these teach "
    "most: usl more RUN_DIR --budget N asks for those that help most."
)
_DOUBTED = (
    "Labels that the classifier would not have given while they were held out (confident learning, Northcutt et al., "
    "2021). Some are slips, some are images that are hard to tell."
)
_LINKED = "Each picture is a link to the labelling page, where its label is given or changed, while this command runs:"
_UNLINKED = "The labelling page, where labels are given and changed, shows one of these with --image and its name:"


@dataclass(frozen=True)
class _Shown:
    """Pictures of a classifier's images, each a link to the labelling page.

    Attributes:
        source: the images.
        page: address of what leads there; None: nothing does.
    """

    source: "ImageSource"
    page: str | None

    def name(self, row: int) -> str:
        return self.source.files[row] if self.source.files else f"image {row}"

    def pictures(self, rows: Sequence[int], captions: Sequence[tuple[str, list[str]]]) -> Html | None:
        """Pictures in rows, each with a class and facts below it, and then its name."""
        if not rows:
            return None
        items = []
        for row, picture, (title, facts) in zip(rows, thumbnails(self.source, rows), captions, strict=True):
            facts = [*facts, self.name(row)]
            image = tag(
                "img", src=picture.uri, alt=f"{title}, {', '.join(facts)}", width=picture.width, height=picture.height,
                class_="tiny" if picture.tiny else None,
            )  # fmt: skip
            caption = tag("figcaption", tag("strong", title), [tag("span", fact) for fact in facts])
            items.append(tag("li", tag("figure", self._linked(image, row), caption)))
        return tag("ul", items, class_="gallery")

    def _linked(self, image: Html, row: int) -> Html:
        if self.page is None:
            return image
        place = urlencode({"image": row, "name": self.name(row)})
        return tag("a", image, href=f"{self.page}#{place}", target="_blank", rel="noreferrer")


def predictions(run: RunReport, beside: Path) -> Html | None:
    """What each classifier says of the images it learned from; None if none left its predictions.

    Args:
        run: the run.
        beside: the folder that the page is written to.
    """
    parts = [part for stage in run.stages for part in _of_stage(run, stage, beside)]
    return section("predictions", "Predictions", *parts) if parts else None


def _of_stage(run: RunReport, stage: StageReport, beside: Path) -> list[Child]:
    from usl_lightning.evaluation.told import PREDICTIONS, Told

    told = Told.read(stage.folder.files / f"{PREDICTIONS}.npz")
    if told is None:
        return []
    head = tag("h3", f"{stage.model} ({stage.name})")
    try:
        source = open_images(stage.config)
        if len(source) != len(told.labels):
            raise UslError(f"there are {len(source):,} images now, {len(told.labels):,} when it learned")
        labels = run.label_file_of(stage)
        page = None if labels is None else make_page(labels)
        shown = _Shown(source, None if page is None else quote(os.path.relpath(page, beside)))
        words = tag("p", _LINKED if page else _UNLINKED, class_="note")
        lead = [] if labels is None else [words, code(shlex.join(["usl", "label", str(labels)]))]
        return [head, *lead, *_by_class(told, shown), *_most_unsure(told, shown), *_doubted(told, shown)]
    except UslError as error:
        return [head, tag("p", f"The images cannot be shown: {error}", class_="note")]


def _by_class(told: "Told", shown: _Shown) -> list[Child]:
    each = max(1, min(OF_CLASS, OF_ALL_CLASSES // len(told.classes)))
    parts: list[Child] = [
        tag("h4", "What is taken for each class"),
        tag("p", "From the surest to the least sure; in per cent how probable the class is.", class_="note"),
    ]
    for label, name in enumerate(told.classes[:OF_ALL_CLASSES]):
        count, rows = told.of_class(label, each)
        parts.append(tag("h5", f"{name}: {count:,} of {len(told.labels):,} images"))
        parts.append(shown.pictures(rows, [_said(told, row) for row in rows]))
    return parts


def _most_unsure(told: "Told", shown: _Shown) -> list[Child]:
    rows = told.unsure(UNSURE)
    pictures = shown.pictures(rows, [_said(told, row) for row in rows])
    return [tag("h4", "Most unsure"), tag("p", _UNSURE, class_="note"), pictures]


def _doubted(told: "Told", shown: _Shown) -> list[Child]:
    doubts = told.doubts()
    parts: list[Child] = [tag("h4", "Labels that look wrong")]
    if not doubts:
        return [*parts, tag("p", "None.", class_="note")]
    first = doubts[:DOUBTED]
    captions = [
        (f"labelled {told.classes[each.given]}", [f"rather {told.classes[each.rather]}, {each.probability:.0%}"])
        for each in first
    ]
    words = _DOUBTED if len(first) == len(doubts) else f"{_DOUBTED} The first {len(first)} of {len(doubts):,}."
    return [*parts, tag("p", words, class_="note"), shown.pictures([each.row for each in first], captions)]


def _said(told: "Told", row: int) -> tuple[str, list[str]]:
    return told.classes[int(told.labels[row])], [f"{float(told.probabilities[row]):.0%}"]
