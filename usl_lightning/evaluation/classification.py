"""How good a classifier is: accuracy, confusions, and whether its probabilities can be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.files import write_json
from usl_lightning.compute.distributed import gather

BINS = 15
"""Bins of the calibration error (Guo et al., 2017, section 4)."""

_SHOWN_CLASSES = 20  # a table or a matrix of more is read in the file
_WRITTEN_CLASSES = 100  # a matrix of more is no text


@dataclass(frozen=True)
class Scores:
    """What a classifier makes of n labelled images.

    Attributes:
        images: n, at least 1.
        accuracy: fraction of 1.
        calibration_error: ECE with `BINS` bins, in [0, 1].
        class_accuracy: the accuracy among the images of each class; None for a class without images.
        confusion: int64 [classes, classes]: how many images of class `row` are taken for class `column`.
    """

    images: int
    accuracy: float
    calibration_error: float
    class_accuracy: tuple[float | None, ...]
    confusion: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data but the confusions, for a file."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            "class_accuracy": self.class_accuracy,
        }


class Tally:
    """Counts over the batches of a pass; what they say is of all processes together.

    Not a module: DistributedDataParallel would overwrite the counts of every process with those of the first.

    Args:
        num_classes: c.
        device: where the batches are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long, device=device)
        self.bins = torch.zeros(BINS, 3, dtype=torch.double, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: [b, c].
            labels: int64 [b]; images labelled -1 (unknown) do not count.
        """
        known = labels >= 0
        labels = labels[known]
        confidence, predicted = logits.detach()[known].double().softmax(1).max(1)
        ones = torch.ones_like(labels)
        self.confusion.index_put_((labels, predicted), ones, accumulate=True)
        values = torch.stack([torch.ones_like(confidence), (predicted == labels).double(), confidence], dim=1)
        self.bins.index_add_(0, confidence_bins(confidence), values)

    def scores(self) -> Scores | None:
        """The scores over all processes, None if no image had a label. Every process must call it."""
        confusion = gather(self.confusion[None]).sum(0).cpu()
        bins = gather(self.bins[None]).sum(0).cpu()
        images = int(confusion.sum())
        if not images:
            return None
        per_class = zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True)
        return Scores(
            images,
            accuracy=float(confusion.trace()) / images,
            calibration_error=calibration_error(bins),
            class_accuracy=tuple(right / count if count else None for right, count in per_class),
            confusion=confusion,
        )


def confidence_bins(confidence: Tensor) -> Tensor:
    """The bin of each confidence [n] in [0, 1]: the equal intervals ((m − 1)/M, m/M] are 0 … M − 1."""
    return (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)


def calibration_error(bins: Tensor) -> float:
    """Expected calibration error (Guo et al., 2017, Eq. 3): Σ_m |B_m|/n · |accuracy(B_m) − confidence(B_m)|.

    Args:
        bins: [M, 3], of each bin its images, those classified rightly, and the sum of their confidences.
    """
    images, correct, confidence = bins.double().unbind(1)
    return float((correct - confidence).abs().sum() / images.sum())


def confident_counts(logits: Tensor, labels: Tensor, *, threshold: float) -> Tensor:
    """What pseudo-labels these predictions would make, counted.

    Args:
        logits: [b, c].
        labels: int64 [b], for the report alone; -1 where unknown.
        threshold: least probability of a pseudo-label.

    Returns:
        int64 [4]: images, those with a pseudo-label, those of them whose label is known, and those where it is right.
    """
    confidence, predicted = logits.softmax(1).max(1)
    confident = confidence >= threshold
    known = confident & (labels >= 0)
    right = known & (predicted == labels)
    return torch.stack([torch.ones_like(known), confident, known, right]).sum(1)


# For people ----------------------------------------------------------------------------------------------


def write_scores(path: Path, about: Mapping[str, Any], scores: Mapping[str, Scores], classes: Sequence[str]) -> None:
    """Everything there is to know, as JSON: `about`, then `classes`, `calibration_bins` and each network's scores.

    The confusions of up to 100 classes are rows in it; of more, they are the name of a file beside it, `.npy`.

    Args:
        path: of the file.
        about: what was tested, plain data.
        scores: name of a network -> its scores.
        classes: names in label order.
    """
    networks = {}
    for name, each in scores.items():
        confusion: Any = each.confusion.tolist() if len(classes) <= _WRITTEN_CLASSES else f"confusion_{name}.npy"
        networks[name] = {**each.as_dict(), "confusion": confusion}
        if isinstance(confusion, str):
            with atomic_path(path.with_name(confusion)) as temporary, open(temporary, "wb") as file:
                np.save(file, each.confusion.numpy())
    write_json(path, {**about, "classes": classes, "calibration_bins": BINS, **networks})


def scores_table(scores: Mapping[str, Scores], classes: Sequence[str]) -> str:
    """Scores of several networks on the same images as aligned columns, then the confusion matrix of the first.

    Args:
        scores: name of a network -> its scores.
        classes: names in label order. Of more than 20, those the first network is worst at are shown, and no matrix.
    """
    first = next(iter(scores.values()))
    counts = first.confusion.sum(1).tolist()
    worst = sorted(range(len(classes)), key=lambda i: (first.class_accuracy[i] is None, first.class_accuracy[i] or 0.0))
    shown = sorted(worst[:_SHOWN_CLASSES])
    rows = [
        [f"{first.images} images", "", *scores],
        ["accuracy", "", *(_figure(each.accuracy) for each in scores.values())],
        [f"calibration error, {BINS} bins", "", *(_figure(each.calibration_error) for each in scores.values())],
        ["", "", *("" for _ in scores)],
        ["accuracy of class", "images", *scores],
        *([classes[i], str(counts[i]), *(_figure(s.class_accuracy[i]) for s in scores.values())] for i in shown),
    ]
    text = _aligned(rows)
    if len(shown) < len(classes):
        return f"{text}\n({len(shown)} of {len(classes)} classes, the least accurate)"
    matrix = [[f"{next(iter(scores))}: true \\ taken for", *classes]]
    matrix += [[name, *map(str, row)] for name, row in zip(classes, first.confusion.tolist(), strict=True)]
    return f"{text}\n\n{_aligned(matrix)}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
