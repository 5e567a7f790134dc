"""What a label index is of, and how its entries are named in messages."""

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from usl_lightning.base.errors import UslError, printable

MOST_CLASSES = 100_000
"""A class number is below it where no names of classes tell how many there are: each takes memory."""


@dataclass(frozen=True)
class DatasetId:
    """One split of a data set.

    Attributes:
        name, split: `"digits"`, `"train"`.
        size: number of images.
        fingerprint: `sha256:` and 64 hexadecimal digits; see `ImageSource.fingerprint`.
    """

    name: str
    split: str
    size: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name}/{self.split} ({self.size} images)"

    def beside(self, other: "DatasetId") -> str:
        """What this one is called beside another, from which its name may not tell it."""
        return "other images of that name and number" if str(self) == str(other) else str(self)


@dataclass(frozen=True)
class Entries:
    """What a label index holds: chosen images in order of choice.

    Attributes:
        dataset: what they were chosen from; None if the file does not say (a plain list, `.npy`, `.csv`).
        method: how they were chosen: `name`, `seed`, `params`; empty if the file does not say.
        indices: positions in the data set's own order.
        labels: class numbers, None where there is no label yet; one for each index.
        classes: names in label order; empty if unknown.
        files: for image folders, the path of each index relative to the folder; for `.csv`, `ImageID`.
        path: the file it was read from, for messages.
        unsure: those of `indices` that a person has looked at and could not name; they have no label, and training
            leaves them out.
        followers: images that nobody labels and that take the label of an entry as a pseudo-label in training, for
            each entry; empty if there are none. A selection may ask for that (USL-T on ImageNet).
        hashes: `sha256:…` of the content of each of `files`; empty if the file does not say.
        bulk: those of `indices` whose label was given to several at a glance, not to each by itself. They are labels
            like all others; who looks for mistakes begins with them.
        added: those of `indices` that nobody chose: they were answered beside the others, in a row or as images that
            look like one. They are labels like all others, but stand for no images but themselves: the estimate of an
            accuracy weights the chosen ones alone, and no budget counts them.
        soft: `file`, the path from the index to class probabilities of images that have no label, and their `source`;
            empty if there are none. They are no labels: nothing is counted, learned or measured by them of itself.
    """

    dataset: DatasetId | None
    method: dict[str, Any]
    indices: tuple[int, ...]
    labels: tuple[int | None, ...]
    classes: tuple[str, ...] = ()
    files: tuple[str, ...] | None = None
    path: str | None = field(default=None, compare=False)
    unsure: tuple[int, ...] = ()
    followers: tuple[tuple[int, ...], ...] = ()
    hashes: tuple[str, ...] = ()
    bulk: tuple[int, ...] = ()
    soft: dict[str, str] = field(default_factory=dict)
    added: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def chosen(self) -> int:
        """How many entries were chosen: all but those that were `added`."""
        return len(self.indices) - len(self.added)

    @property
    def plain(self) -> bool:
        """Whether the format carries no labels, so that they are taken from the data set."""
        return self.dataset is None and all(label is None for label in self.labels)


def refuse(where: str, entry: int, problem: str) -> NoReturn:
    """Raise the UslError about one entry of a label index."""
    raise UslError(f"{where}: entry {entry}: {problem}")


def short(value: Any) -> str:
    """A value as JSON, cut to 60 characters, for messages; what a terminal would not show as it is, is escaped."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return printable(text, 60)
