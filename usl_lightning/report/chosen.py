"""Sections of a report on selections: the chosen images, their classes, and where they lie among the others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usl_lightning.base.errors import UslError
from usl_lightning.labels import LabelIndex
from usl_lightning.report.embedding import plane
from usl_lightning.report.images import Thumbnail, open_images, thumbnails
from usl_lightning.report.markup import Child, Html, Names, section, table, tag
from usl_lightning.report.run import RunReport, StageReport
from usl_lightning.report.svg import Map, point_map, spread_colours

if TYPE_CHECKING:
    from usl_lightning.data.images.source import ImageSource
    from usl_lightning.stage.overview import Overview

SHOWN = 240
"""Chosen images on a page, at most; selections share them evenly."""

CLASSES = 30
"""Rows of the table of classes, at most: those where the selections differ most."""


@dataclass(frozen=True)
class Choice:
    """A selection and what is known of the images it chose from.

    Attributes:
        stage: of the run.
        index: the chosen images.
        overview: density and clusters; None if it had no features, or was made by an earlier version.
        source: the images; None if they are not there any more.
        problem: why not.
        grown: images were added since: positions in the overview are no longer theirs.
    """

    stage: StageReport
    index: LabelIndex
    overview: "Overview | None"
    source: "ImageSource | None"
    problem: str = ""
    grown: bool = False

    @property
    def name(self) -> str:
        """Of the method, and of the stage if they differ."""
        stage, model = self.stage.name, self.stage.model
        return model if stage.lower() in (model.lower(), f"select_{model.lower()}") else f"{model} ({stage})"

    def class_of(self, row: int) -> str:
        """The class of entry `row` of the index, or that it has none."""
        label = self.index.labels[row]
        if label is None:
            return "not sure" if self.index.indices[row] in self.index.unsure else "not labelled"
        return self.index.classes[label] if self.index.classes else str(label)

    def file_of(self, row: int) -> str:
        """Which image entry `row` of the index is."""
        return self.index.files[row] if self.index.files else f"image {self.index.indices[row]}"


def read_choices(run: RunReport) -> list[Choice]:
    """The selections of a run, with their images."""
    from usl_lightning.stage.overview import Overview

    opened: dict[str, ImageSource] = {}
    return [
        _choice(stage, stage.chosen, Overview.read(stage.folder.overview), opened)
        for stage in run.selections
        if stage.chosen is not None
    ]


def _choice(
    stage: StageReport, index: LabelIndex, overview: "Overview | None", opened: "dict[str, ImageSource]"
) -> Choice:
    """A selection with its images, if they are still those it chose; `opened` keeps data sets for the next one."""
    from usl_lightning.data.images.source import dataset_id

    if overview is not None and overview.chosen > len(index.indices):  # the labels are not those of this selection
        overview = None
    about = repr(sorted((k, str(v)) for k, v in stage.config.items() if k.startswith("data.")))
    try:
        source = opened[about] = opened.get(about) or open_images(stage.config)
        placed = index.placed(dataset_id(source), files=source.files, hashes_of=source.content_hashes)
    except UslError as error:
        return Choice(stage, index, overview, None, str(error))
    return Choice(stage, placed, overview, source, grown=placed.dataset != index.dataset)


# the images ----------------------------------------------------------------------------------------------


def galleries(choices: Sequence[Choice], contrast: int) -> Html | None:
    """The chosen images of each selection, by class, and `contrast` of those that stand for least."""
    parts = [part for choice in choices for part in _gallery(choice, max(10, SHOWN // len(choices)), contrast)]
    return section("chosen", "Chosen images", *parts) if parts else None


def _gallery(choice: Choice, most: int, least: int) -> list[Child]:
    index, overview = choice.index, choice.overview
    parts: list[Child] = [tag("h3", f"{index.chosen:,} chosen by {choice.name}{_beside(index)}")]
    if choice.source is None:
        return [*parts, tag("p", f"The images cannot be shown: {choice.problem}", class_="note")]
    try:
        pictures = thumbnails(choice.source, index.indices[:most])
        contrast = [] if overview is None or choice.grown else least_representative(overview, least)
        others = thumbnails(choice.source, [int(overview.images[row]) for row in contrast] if overview else [])
    except UslError as error:
        return [*parts, tag("p", f"The images cannot be shown: {error}", class_="note")]
    parts.append(tag("p", _explained(choice, len(pictures)), class_="note"))
    rows = sorted(range(len(pictures)), key=lambda row: _by_class(index.labels[row], row))
    parts.append(tag("ul", [_chosen(choice, row, pictures[row]) for row in rows], class_="gallery"))
    if overview is not None and contrast:
        parts.append(tag("h4", f"For contrast: the {len(contrast)} least representative images"))
        among = f"of {len(overview.images):,} of the {overview.total:,} images" if _is_sample(overview) else "of all"
        parts.append(tag("p", f"The least dense {among}; outliers like these teach little of the rest.", class_="note"))
        shown = [
            _item(picture, f"Not chosen, image {overview.images[row]}", None, [f"density {overview.density[row]:.3g}"])
            for row, picture in zip(contrast, others, strict=True)
        ]
        parts.append(tag("ul", shown, class_="gallery contrast"))
    return parts


def _beside(index: LabelIndex) -> str:
    return f", {len(index.added):,} answered beside them" if index.added else ""


def _explained(choice: Choice, shown: int) -> str:
    index, overview = choice.index, choice.overview
    words = [] if shown == len(index) else [f"The first {shown:,} in order of choice are shown."]
    words.append("By class, then in order of choice (#)." if index.labels.count(None) < len(index) else "Not labelled.")
    if overview is None:
        words.append(
            "Density and clusters are not known: this selection looked at no features, or is of an old version."
        )
    else:
        words.append(
            f"Density is 1/(mean squared distance to the {overview.neighbors:,} nearest images). Share: of all "
            f"images those that are nearer to it than to any other chosen one"
            f"{', as estimated from a sample.' if _is_sample(overview) else '.'}"
        )
    if overview is not None and overview.cluster_sizes is not None:
        words.append(
            f"Cluster: which of the {int((overview.cluster_sizes > 0).sum()):,} it is in, and how many images are."
        )
    return " ".join(words)


def _chosen(choice: Choice, row: int, picture: Thumbnail) -> Html:
    overview, added = choice.overview, choice.index.indices[row] in choice.index.added
    facts = ["not chosen"] if added else [f"#{row + 1}"]
    if overview is not None and row < overview.chosen:
        facts += [
            f"density {overview.density[row]:.3g}",
            f"share {group_shares(overview)[row]:.1%}",
            *_cluster(overview, row),
        ]
    text = f"{'Answered' if added else 'Chosen'} image {row + 1}, class: {choice.class_of(row)}, {choice.file_of(row)}"
    return _item(picture, text, choice.class_of(row), facts)


def _cluster(overview: "Overview", row: int) -> list[str]:
    if overview.clusters is None or overview.cluster_sizes is None:
        return []
    cluster = int(overview.clusters[row])
    return [f"cluster {cluster + 1}: {int(overview.cluster_sizes[cluster]):,}"]


def _item(picture: Thumbnail, text: str, title: str | None, facts: Sequence[str]) -> Html:
    image = tag(
        "img", src=picture.uri, alt=text, width=picture.width, height=picture.height,
        class_="tiny" if picture.tiny else None,
    )  # fmt: skip
    caption = tag("figcaption", None if title is None else tag("strong", title), [tag("span", fact) for fact in facts])
    return tag("li", tag("figure", image, caption))


def _by_class(label: int | None, row: int) -> tuple[bool, int, int]:
    return label is None, label or 0, row


def least_representative(overview: "Overview", most: int) -> list[int]:
    """Rows of the overview that are not chosen and least dense, `most` at most, the least first."""
    rows = range(overview.chosen, len(overview.images))
    return sorted(rows, key=lambda row: (float(overview.density[row]), row))[:most]


def group_shares(overview: "Overview") -> Mapping[int, float]:
    """Place in the order of choice -> share of the images in its group, of all or of the sample."""
    members = overview.nearest[overview.chosen :] if _is_sample(overview) else overview.nearest
    counts = Counter(members.tolist())
    return {place: counts[place] / max(1, len(members)) for place in range(overview.chosen)}


def _is_sample(overview: "Overview") -> bool:
    return len(overview.images) < overview.total


# their classes -------------------------------------------------------------------------------------------


def classes(choices: Sequence[Choice]) -> Html | None:
    """How many images of each class every selection chose, beside what chance gives. None if no class is known."""
    known = [choice for choice in choices if choice.index.classes and not choice.index.unlabelled]
    if not known:
        return None
    first = known[0].index.classes
    known = [choice for choice in known if choice.index.classes == first]
    columns = {choice.name: class_counts(choice.index) for choice in known}
    chance = None if any(choice.stage.model == "Random" for choice in known) else _by_chance(known[0])
    if chance is not None:
        columns["Random, on average"] = chance
    largest = max(max(counts) for counts in columns.values()) or 1
    by_class = list(zip(*columns.values(), strict=True))
    differing = sorted(range(len(first)), key=lambda i: (min(by_class[i]) - max(by_class[i]), i))
    rows = [(first[i], *(_count(count, largest) for count in by_class[i])) for i in sorted(differing[:CLASSES])]
    few = len(rows) < len(first)
    caption = f"Chosen images of {f'the {len(rows)} of {len(first)} classes that differ most' if few else 'each class'}"
    return section("classes", "Classes of the chosen images", table(caption, ("Class", *columns), rows))


def class_counts(index: LabelIndex) -> list[float]:
    """Chosen images of each class."""
    labels = index.picks.labels
    return [float(labels.count(label)) for label in range(len(index.classes))]


def _by_chance(choice: Choice) -> list[float] | None:
    """What as many random images hold of each class on average, if all labels are known; for this page alone."""
    if choice.source is None or bool((choice.source.labels < 0).any()):
        return None
    counts = Counter(choice.source.labels.tolist())
    return [choice.index.chosen * counts[i] / len(choice.source) for i in range(len(choice.index.classes))]


def _count(count: float, largest: float) -> Html:
    return tag("td", f"{count:.3g}", class_="bar" if count else "bar none", style=f"--v:{count / largest:.3f}")


# the map -------------------------------------------------------------------------------------------------


def maps(choices: Sequence[Choice], names: Names) -> Html | None:
    """The features in two dimensions, with the chosen images, for each selection that had features."""
    parts = [part for choice in choices if choice.overview is not None for part in _map(choice, choice.overview, names)]
    return section("map", "Map of the features", *parts) if parts else None


def _map(choice: Choice, overview: "Overview", names: Names) -> list[Child]:
    places, how = plane(overview.features)
    labels, known = _labels(choice, overview), choice.index.classes
    colours = spread_colours(len(known))
    shown = [colours[label] if 0 <= label < len(colours) else None for label in labels]
    captions = [f"#{row + 1}: {choice.class_of(row)}, {choice.file_of(row)}" for row in range(overview.chosen)]
    words = (
        f"{len(places):,} of {overview.total:,} images as dots, near each other where their features are alike; the "
        f"{overview.chosen:,} chosen ones are numbered in order of choice."
    )
    title = f"Features that {choice.name} chose from"
    drawing = point_map(Map(title, words, places.tolist(), shown, range(overview.chosen), captions), names)
    by_class = any(colour is not None for colour in shown)
    note = f"{words} Made by {how}. {'Colours are the classes, where they are known.' if by_class else ''}"
    legend = [tag("li", tag("span", class_=f"spot s{i}"), name) for i, name in enumerate(known)] if by_class else []
    key = tag("ul", legend, class_="legend") if legend else None
    return [tag("figure", tag("figcaption", title), drawing, key, class_="map"), tag("p", note, class_="note")]


def _labels(choice: Choice, overview: "Overview") -> list[int]:
    """The class of each image of the overview, -1 where it is not known."""
    labels = [-1] * len(overview.images)
    if choice.source is not None and choice.source.classes == choice.index.classes and not choice.grown:
        labels = [int(choice.source.labels[position]) for position in overview.images.tolist()]
    for row in range(overview.chosen):
        own = choice.index.labels[row]
        labels[row] = labels[row] if own is None else own
    return labels
