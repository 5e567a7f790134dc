"""What is written below the chosen images in `chosen.png`, also when people have labelled them since. No torch."""

from contextlib import suppress
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.names import NOT_SURE

SHOWN = 200
"""Images in the picture of a selection: their pixels are all in memory at once."""


def captions(index: LabelIndex) -> list[str]:
    """The class of each image that the picture shows, the chosen ones; `?` where nobody has said."""
    index = index.picks
    names = index.classes or [str(number) for number in range(max((one or 0 for one in index.labels), default=0) + 1)]
    unsure = set(index.unsure)
    return [
        names[label] if label is not None else NOT_SURE if image in unsure else "?"
        for image, label in zip(index.indices[:SHOWN], index.labels[:SHOWN], strict=True)
    ]


def redraw_captions(labels: Path, index: LabelIndex) -> None:
    """Bring the picture beside a label file up to date; one that cannot be read or written stays as it is.

    Args:
        labels: the label file.
        index: what it holds now.
    """
    from usl_lightning.pictures.gallery import caption_strip

    with suppress(UslError):
        caption_strip(labels.with_name("chosen.png"), captions(index))
