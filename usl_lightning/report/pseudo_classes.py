"""Section of a report on the pseudo-classes that SeLa gave the images: the purest, and random ones."""

from pathlib import Path
from typing import TYPE_CHECKING

from usl_lightning.base.arrays import load_array
from usl_lightning.base.errors import UslError
from usl_lightning.report.images import open_images, thumbnails
from usl_lightning.report.markup import Child, Html, section, tag
from usl_lightning.report.run import RunReport, StageReport

if TYPE_CHECKING:
    from torch import Tensor

    from usl_lightning.data.images.source import ImageSource

SHOWN, IMAGES = 8, 10
"""Pseudo-classes of each kind, and random images of each, at most."""

_PUREST = (
    "Those whose images have the fewest true classes, by the entropy of these; the larger first. True classes are read "
    "for this page alone."
)


def pseudo_classes(run: RunReport) -> Html | None:
    """The pseudo-classes of the first head of each stage that left some (Asano et al., 2020, A.4 and A.5)."""
    parts: list[Child] = []
    for stage in run.stages:
        path = stage.folder.files / "self_labels.npy"
        if path.exists():
            parts += _of_stage(stage, path)
    return section("pseudo-classes", "Pseudo-classes", *parts) if parts else None


def _of_stage(stage: StageReport, path: Path) -> list[Child]:
    title = f"{stage.model} ({stage.name})"
    try:
        source = open_images(stage.config)
        heads = _read(path, len(source))
        own = heads[0]
        parts: list[Child] = [tag("h3", f"{title}: head 1 of {len(heads)}")]
        purest = _purest(own, source)
        if purest:
            parts += [tag("h4", "The purest"), tag("p", _PUREST, class_="note")]
            parts += [_pseudo_class(number, own, source) for number in purest]
        parts += [tag("h4", "Random ones"), *(_pseudo_class(number, own, source) for number in _random(own))]
        return parts
    except UslError as error:
        return [tag("h3", title), tag("p", f"The pseudo-classes cannot be shown: {error}", class_="note")]


def _read(path: Path, images: int) -> "Tensor":
    """Labels int64 [H, n] of the images."""
    import torch

    array = load_array(path)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != images or not len(array):
        raise UslError(f"{path}: holds {list(array.shape)} {array.dtype}; expected labels of {images:,} images")
    if array.min() < 0 or array.max() >= images:
        raise UslError(f"{path}: holds {array.min()} to {array.max()}; expected from 0, and fewer labels than images")
    return torch.from_numpy(array).long()


def _purest(own: "Tensor", source: "ImageSource") -> list[int]:
    """Numbers of pseudo-classes; none if no class is known."""
    import torch

    from usl_lightning.evaluation.clusters import class_entropies

    entropies, sizes = class_entropies(own, source.labels).tolist(), torch.bincount(own).tolist()
    known = [number for number, entropy in enumerate(entropies) if entropy == entropy]
    return sorted(known, key=lambda number: (round(entropies[number], 9), -sizes[number], number))[:SHOWN]


def _random(own: "Tensor") -> list[int]:
    from usl_lightning.data.keys import permutation

    used = own.bincount().nonzero()[:, 0]
    return used[permutation(len(used), 0, "pseudo-classes")[:SHOWN]].tolist()  # type: ignore[no-any-return]


def _pseudo_class(number: int, own: "Tensor", source: "ImageSource") -> Html:
    """Random images of one, below its size and its commonest class."""
    from usl_lightning.data.keys import permutation

    members = (own == number).nonzero()[:, 0]
    some = members[permutation(len(members), number, "pseudo-class")[:IMAGES]].tolist()
    items = []
    for row, picture in zip(some, thumbnails(source, some), strict=True):
        name = source.files[row] if source.files else f"image {row}"
        image = tag(
            "img", src=picture.uri, alt=f"{_class_of(source, row)}, {name}", width=picture.width, height=picture.height,
            class_="tiny" if picture.tiny else None,
        )  # fmt: skip
        items.append(tag("li", tag("figure", image, tag("figcaption", _class_of(source, row)))))
    title = f"Pseudo-class {number}: {len(members):,} images{_commonest(source, members)}"
    return tag("div", tag("h5", title), tag("ul", items, class_="gallery"))


def _class_of(source: "ImageSource", row: int) -> str:
    label = int(source.labels[row])
    if label < 0:
        return "class not known"
    return source.classes[label] if source.classes else str(label)


def _commonest(source: "ImageSource", members: "Tensor") -> str:
    labels = source.labels[members]
    known = labels[labels >= 0]
    if not len(known):
        return ""
    counts = known.bincount()
    label = int(counts.argmax())
    row = int(members[(labels == label).nonzero()[0, 0]])
    return f", {int(counts[label]) / len(known):.0%} {_class_of(source, row)}"
