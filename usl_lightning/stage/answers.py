"""What became of the labels that a run was begun with, in words. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.labels import LabelIndex
from usl_lightning.labels.names import NOT_SURE

KEY = "data.labels"


def answers_in(path: str | Path) -> dict[str, str | None]:
    """Image -> the name or number of its class, of a label file; `record` of a stage keeps them.

    Raises:
        UslError: the file is missing or damaged.
    """
    index = LabelIndex.read(path)
    unsure = set(index.unsure)
    names = [
        NOT_SURE
        if image in unsure
        else label
        if label is None
        else index.classes[label]
        if index.classes
        else str(label)
        for image, label in zip(index.indices, index.labels, strict=True)
    ]
    return dict(zip(map(str, index.indices), names, strict=True))


def in_words(path: str | Path, before: Mapping[str, str | None]) -> str:
    """What has changed in a label file: `labels.json changed: 2 answers`.

    Args:
        path: the file as it is now.
        before: `answers_in` it when the run began.
    """
    try:
        now = answers_in(path)
    except UslError as error:
        return f"{KEY} is another file ({error})"
    images = now.keys() ^ before.keys()
    answers = sum(now[image] != before[image] for image in now.keys() & before.keys())
    parts = [_counted(len(images), "image", "images are only in one of both")] if images else []
    parts += [_counted(answers, "answer", "answers")] if answers else []
    return f"{path} changed: {', '.join(parts) or 'its answers are the same, something else is not'}"


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
