"""What a classifier says of the images that it learned from, with and without labels; and which labels look wrong."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.atomic import atomic_path, check_file

PREDICTIONS = "predictions"
"""Name of the file, without its suffix, among the outputs of a stage."""


class HeldOut(NamedTuple):
    """Labels, and what was said of them while they were held out.

    Attributes:
        rows: int64 [m], the images.
        given: int64 [m], the labels of people.
        probabilities: float32 [m, c].
    """

    rows: Tensor
    given: Tensor
    probabilities: Tensor


class Doubt(NamedTuple):
    """A label that looks wrong.

    Attributes:
        row: the image.
        given, rather: its label, and the class it looks like.
        probability: of the latter, while the label was held out.
    """

    row: int
    given: int
    rather: int
    probability: float


@dataclass(frozen=True)
class Told:
    """What a classifier says of n images.

    Attributes:
        classes: names.
        labels: int64 [n], the most probable class.
        probabilities: float32 [n], of that class.
        margins: float32 [n], how much more probable it is than the next.
        held_out: of the labelled ones.
    """

    classes: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    margins: Tensor
    held_out: HeldOut

    @classmethod
    def of(cls, probabilities: Tensor, classes: tuple[str, ...], held_out: "HeldOut | None") -> "Told":
        """From the probabilities [n, c] of all images, c ≥ 2."""
        assert held_out is not None
        best = probabilities.float().cpu().topk(2, 1)
        values = best.values
        return cls(classes, best.indices[:, 0], values[:, 0], values[:, 0] - values[:, 1], held_out)

    def unsure(self, most: int) -> list[int]:
        """Rows of the images without a label whose two likeliest classes are closest to each other, those first."""
        margins = self.margins.clone()
        margins[self.held_out.rows] = torch.inf
        order = torch.argsort(margins, stable=True)[:most]
        return [row for row in order.tolist() if margins[row] < torch.inf]

    def of_class(self, label: int, most: int) -> tuple[int, list[int]]:
        """How many images are taken for a class, and rows of them from the surest to the least sure, evenly spaced."""
        rows = torch.nonzero(self.labels == label)[:, 0]
        rows = rows[torch.argsort(self.probabilities[rows], descending=True, stable=True)]
        shown = min(most, len(rows))
        places = torch.arange(shown) * max(0, len(rows) - 1) // max(1, shown - 1)
        return len(rows), rows[places].tolist()

    def doubts(self) -> list[Doubt]:
        """Labels that look wrong by confident learning (Northcutt, Jiang and Chuang, JAIR 2021), the worst first.

        An image is counted to the likeliest class of those that are at least as probable as they are, on average, for
        images which people gave that label; a label other than that class is doubted.
        """
        rows, given, told = self.held_out
        same = torch.nn.functional.one_hot(given, told.shape[1]).bool()
        counts = same.sum(0)
        usual = torch.where(counts > 0, (told * same).sum(0) / counts.clamp_min(1), torch.inf)
        confident = torch.where(told >= usual, told, -torch.inf)
        best, rather = confident.max(1)
        doubted = torch.nonzero((best > -torch.inf) & (rather != given))[:, 0]
        gap = told[doubted, rather[doubted]] - told[doubted, given[doubted]]
        doubted = doubted[torch.argsort(gap, descending=True, stable=True)]
        return [Doubt(int(rows[i]), int(given[i]), int(rather[i]), float(told[i, rather[i]])) for i in doubted.tolist()]

    def write(self, path: Path) -> None:
        """Write a `.npz`, atomically."""
        arrays = {
            "classes": np.array(self.classes, dtype=np.str_),
            "labels": self.labels.numpy().astype(np.int32),
            "probabilities": self.probabilities.numpy(),
            "margins": self.margins.numpy(),
            "labelled": self.held_out.rows.numpy(),
            "given": self.held_out.given.numpy(),
            "held_out": self.held_out.probabilities.float().numpy(),
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> "Told | None":
        """What `write` wrote; None if there is none, or it is damaged."""
        try:
            check_file(path)
            with np.load(path, allow_pickle=False) as kept:
                held = HeldOut(*(torch.from_numpy(kept[name]) for name in ("labelled", "given", "held_out")))
                labels, *rest = (torch.from_numpy(kept[name]) for name in ("labels", "probabilities", "margins"))
                return cls(tuple(map(str, kept["classes"])), labels.long(), rest[0], rest[1], held)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
