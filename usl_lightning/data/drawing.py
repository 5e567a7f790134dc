"""The batches of steps and passes, made wherever workers run.

These hold nothing of the run, so that they can be pickled when workers are spawned.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from usl_lightning.data.batch import Batch, PairBatch, SemiBatch
from usl_lightning.data.images.source import ArraySource, ImageSource
from usl_lightning.data.keys import Key
from usl_lightning.data.sampling import StepSampler, drawn_neighbors


@dataclass
class Draw:
    """This process's part of the global batch of a step; pixels of resident images (no source) come later."""

    source: ImageSource | None
    sampler: StepSampler
    slots: Tensor
    seed: int
    name: str
    split: str
    pool: Tensor | None
    labels: Tensor | None

    def __call__(self, step: int) -> Batch:
        positions = self.sampler(step)[self.slots]
        indices = positions if self.pool is None else self.pool[positions]
        labels = torch.full_like(indices, -1) if self.labels is None else self.labels[positions]
        key = Key.of(self.seed, self.name, step, slots=self.slots)
        return Batch(_pixels(self.source, indices), labels, indices, key, self.split)


@dataclass
class Pairs:
    """This process's part of the global batch of a step, and a neighbour of each of its images."""

    draw: Draw
    neighbors: Tensor

    def __call__(self, step: int) -> PairBatch:
        anchor = self.draw(step)
        indices = drawn_neighbors(self.neighbors, anchor.indices, anchor.key)
        neighbor = replace(anchor, images=_pixels(self.draw.source, indices), indices=indices)
        return PairBatch(anchor, replace(neighbor, key=anchor.key.fold("neighbor views")))


@dataclass
class Pass:
    """The batches of a whole-set pass over this process's share, with the data set's labels."""

    source: ImageSource | None
    labels: Tensor
    share: Tensor
    batch_size: int
    seed: int
    split: str

    def __call__(self, number: int) -> Batch:
        indices = self.share[number * self.batch_size : (number + 1) * self.batch_size]
        key = Key.of(self.seed, "pass", slots=indices)
        return Batch(_pixels(self.source, indices), self.labels[indices], indices, key, self.split)


def _pixels(source: ImageSource | None, indices: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8) if source is None else source.read(indices)


def both(labelled: Callable[[int], Batch], unlabelled: Callable[[int], Batch], step: int) -> SemiBatch:
    """The two parts of a step."""
    return SemiBatch(labelled(step), unlabelled(step))


def read_all(source: ImageSource, chunk: int = 1024) -> Tensor:
    """All images of a source, uint8 [n, c, h, w]."""
    if isinstance(source, ArraySource):
        return source.images
    images = torch.empty((len(source), source.channels, source.height, source.width), dtype=torch.uint8)
    chunks = torch.split(torch.arange(len(source)), chunk)
    bar = tqdm(source.read_batches(chunks), "reading images", len(chunks), leave=False, disable=None)
    for indices, part in zip(chunks, bar, strict=True):
        images[indices] = part
    return images
