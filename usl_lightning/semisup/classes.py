"""What any classifier asks of the data that it is looked at with."""

from collections.abc import Sequence
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.modules import ImageData, LabelledData


def check_two(image: ImageSpec) -> None:
    """Refuse images of fewer than two classes.

    Raises:
        UslError: says which are known, and what to do.
    """
    if image.num_classes < 2:
        known = f"'{image.classes[0]}' is the only class known" if image.classes else "no class is known"
        raise UslError(f"data.labels: {known}; a classifier needs at least 2: label images of another one, too")


def check_classes(known: Sequence[str], data: ImageData, checkpoint: Path) -> None:
    """Refuse data of other classes than a classifier knows.

    Raises:
        UslError: says both.
    """
    found = data.classes if isinstance(data, LabelledData) and data.labels else data.train_source.classes
    if found and found != known:
        there, here = (f"{len(names)} classes ({', '.join(names[:3])}, …)" for names in (known, found))
        raise UslError(f"{checkpoint}: tells {there} apart, the data has {here}; use the data it was trained on")


def untestable(data: ImageData) -> str | None:
    """Why a classifier cannot be measured on a data set: it has no test images; None: it has."""
    if data.has_test:
        return None
    return f"{data.dataset} has no test split to measure on; `usl predict` classifies any images"
