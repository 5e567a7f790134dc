"""What a training step receives."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from usl_lightning.data.keys import Key


@dataclass
class Batch:
    """This process's part of one global batch.

    Attributes:
        images: uint8 [b, c, h, w]. Between a worker and the device a resident data set sends an empty
            tensor: the pixels are already there.
        labels: int64 [b], -1 where the label is not known or not to be used.
        indices: int64 [b], positions in the data set.
        key: the samples' random keys, for views and everything else drawn in the step.
        split: the split the indices refer to.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    key: Key
    split: str = "train"

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on `device` (Lightning calls this)."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.indices.to(device, non_blocking=non_blocking),
            self.key.to(device, non_blocking=non_blocking),
            self.split,
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (the DataLoader calls this)."""
        key = Key(self.key.base, self.key.slots.pin_memory())
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), key, self.split)


class SemiBatch(NamedTuple):
    """One step of semi-supervised training: B labelled images and μB unlabelled ones."""

    labelled: Batch
    unlabelled: Batch


class PairBatch(NamedTuple):
    """One step of USL-T: images, and one of the nearest neighbours of each."""

    anchor: Batch
    neighbor: Batch


class ImageSpec:
    """What a network must know of the images it is given; stored with its weights.

    Not a dataclass: the command line would unfold one into parameters to type, and this comes from the data.

    Args:
        channels: 1 or 3.
        height, width: in pixels.
        mean, std: per channel, of the training pixels in [0, 1].
        classes: names in label order; empty when unknown.
        count: images of the training split: what counters, banks and self-labels have one entry for.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: tuple[str, ...] = (),
        count: int = 0,
    ) -> None:
        self.channels, self.height, self.width = channels, height, width
        self.mean, self.std, self.classes, self.count = mean, std, classes, count

    @property
    def num_classes(self) -> int:
        """Classes known."""
        return len(self.classes)
