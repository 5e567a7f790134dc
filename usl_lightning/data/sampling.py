"""Which images each step sees, and the batches drawn so."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from usl_lightning.base.errors import UslError
from usl_lightning.base.machine import ROOM
from usl_lightning.base.progress import Bar
from usl_lightning.data.batch import Batch, PairBatch, SemiBatch
from usl_lightning.data.images.source import ArraySource, ImageSource
from usl_lightning.data.keys import Key, permutation

T = TypeVar("T")

MONITORED = 0.04
"""Images that a look at the features amid training takes, for each image trained on since the last look. Training on
one costs three forward passes at least (forward and backward of one view), so a look takes less than 2% of the time,
also where the images have half as many pixels again as a view."""


class StepSampler:
    """The positions that make up the global batch of every step.

    With at least one batch of images, an epoch is a random order without its incomplete last batch, so no
    image is twice in a batch (twins would be false negatives of a contrastive loss). With fewer images than
    the batch has places, random orders are strung together: every image appears equally often, to within one.

    Args:
        size: number of images to draw from, at least 1.
        batch_size: places in the global batch.
        parts: what the orders are a function of: the seed and a name.
    """

    def __init__(self, size: int, batch_size: int, *parts: int | str) -> None:
        self.size, self.batch_size, self._parts = size, batch_size, parts
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image (but the rest of the last batch) is seen once; at least 1."""
        return max(1, self.size // self.batch_size)

    def __call__(self, step: int) -> Tensor:
        """Positions in {0, …, size - 1} of the global batch of `step` (0-based), int64 [batch_size]."""
        if self.size >= self.batch_size:
            epoch, place = divmod(step, self.steps_per_epoch)
            start = place * self.batch_size
            return self._epoch_order(epoch)[start : start + self.batch_size]
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(first // self.size, (last - 1) // self.size + 1)
        orders = torch.cat([permutation(self.size, *self._parts, "epoch", epoch) for epoch in epochs])
        start = first - epochs[0] * self.size
        return orders[start : start + self.batch_size]

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.size, *self._parts, "epoch", epoch)
        return self._order


class BalancedSampler:
    """The positions of a global batch that has equally many images of each class, for every step.

    Which of a class, and which classes if not all, is drawn anew at each step. A class with fewer images than places
    has each of them equally often, to within one.

    Args:
        labels: int64 [n], of the images to draw from, at least one.
        per_class: images of each class.
        classes: of them in a step; None: all that have a label.
        parts: what is drawn is a function of: the seed and a name.
    """

    def __init__(self, labels: Tensor, per_class: int, classes: int | None, *parts: int | str) -> None:
        self._labels, self._per_class, self._parts = labels, per_class, parts
        counts = torch.bincount(labels)
        self._counts = counts[counts > 0]
        self._firsts = self._counts.cumsum(0) - self._counts
        self._drawn = len(self._counts) if classes is None else classes

    @property
    def batch_size(self) -> int:
        """Places in the global batch."""
        return self._drawn * self._per_class

    def __call__(self, step: int) -> Tensor:
        """Positions in {0, …, n - 1} of the global batch of `step` (0-based), class by class, int64 [batch_size]."""
        order = permutation(len(self._labels), *self._parts, "images", step)
        order = order[self._labels[order].argsort(stable=True)]
        classes = permutation(len(self._counts), *self._parts, "classes", step)[: self._drawn, None]
        return order[self._firsts[classes] + torch.arange(self._per_class) % self._counts[classes]].flatten()


def drawn_neighbors(neighbors: Tensor, indices: Tensor, key: Key) -> Tensor:
    """One neighbour of each image, drawn anew at every step.

    Args:
        neighbors: int64 [n, k], each row the neighbours of one image of the data set.
        indices: int64 [b], the images.
        key: their keys.

    Returns:
        int64 [b], positions in the data set.
    """
    column = key.fold("neighbor").integers(1, neighbors.shape[1])[:, 0]
    return neighbors[indices, column]


def process_slots(batch_size: int, rank: int, world_size: int) -> Tensor:
    """The slots of the global batch that process `rank` handles: contiguous, int64 [batch_size / world_size].

    Raises:
        UslError: the batch cannot be divided evenly; names the nearest sizes that can.
    """
    share, rest = divmod(batch_size, world_size)
    if rest or share == 0:
        below, above = share * world_size, (share + 1) * world_size
        sizes = f"{below} or {above}" if below else f"{above}"
        raise UslError(
            f"data.batch_size: {batch_size} images cannot be divided over {world_size} processes; use {sizes}"
        )
    return torch.arange(rank * share, (rank + 1) * share)


def process_range(size: int, rank: int, world_size: int) -> range:
    """The images of a whole-set pass that process `rank` handles: contiguous, even to within one."""
    return range(rank * size // world_size, (rank + 1) * size // world_size)


def monitored(sizes: Sequence[int], trained: int, seed: int, *, processes: int = 1) -> list[Tensor]:
    """The images that every look at the features amid training takes: always the same, so that looks compare.

    Args:
        sizes: images of the training split and, where there is one, of the test split.
        trained: images trained on from one look to the next.
        seed: of the run.
        processes: that share the images.

    Returns:
        For each split ascending positions, int64: `MONITORED`·trained in all, a quarter of them of the test split;
        fewer where a split has no more, and at least one of each for each process.
    """
    most = int(MONITORED * trained)
    test = [min(size, max(processes, most // 4)) for size in sizes[1:]]
    counts = [min(sizes[0], max(processes, most - sum(test))), *test]
    return [
        permutation(size, seed, "monitor", number)[:count].sort().values
        for number, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]


class _Steps(IterableDataset, Generic[T]):
    def __init__(self, make: Callable[[int], T], first: int, stop: int | None) -> None:
        self._make, self._first, self._stop = make, first, stop

    def __iter__(self) -> Iterator[T]:
        worker = get_worker_info()
        first, stride = (self._first + worker.id, worker.num_workers) if worker else (self._first, 1)
        steps = itertools.count(first, stride) if self._stop is None else range(first, self._stop, stride)
        return map(self._make, steps)


def _end_rather_than_lose_a_batch(worker: int) -> None:
    """Have a worker that cannot hand over a batch end, which is noticed; Python's would go on to the next.

    Shared memory may be full: a batch that never comes is waited for without end, or missing from a pass.
    """
    Queue._on_queue_feeder_error = staticmethod(lambda error, batch: os._exit(1))  # type: ignore[attr-defined]


class StepLoader(Generic[T]):
    """Batches `make(step)` for step = first(), first() + 1, …

    Worker w of W makes every W-th one; the DataLoader asks them in turn, so the order never depends on W. It
    is not a DataLoader itself: Lightning would put a sampler of its own into one.

    Args:
        make: the batch of a step; must be picklable if the platform spawns its workers.
        first: asked anew whenever an iteration begins: on a resume the trainer knows its step only then.
        stop: end before this step; None goes on for ever.
        workers: worker processes; 0 makes the batches in this one.
        pin: put batches in page-locked memory, for a CUDA device.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        *,
        first: Callable[[], int] | None = None,
        stop: int | None = None,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self._make, self._first, self._stop = make, first, stop
        self._workers, self._pin = workers, pin

    @property
    def dataset(self) -> IterableDataset:
        """What a worker process runs: the steps from the present one on."""
        return _Steps(self._make, 0 if self._first is None else self._first(), self._stop)

    def __iter__(self) -> Iterator[T]:
        loader = DataLoader(
            self.dataset, batch_size=None, num_workers=self._workers, pin_memory=self._pin,
            worker_init_fn=_end_rather_than_lose_a_batch,
        )  # fmt: skip
        try:
            return iter(loader)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UslError(f"the processes that read images cannot be started ({reason}); {ROOM}") from error

    def __len__(self) -> int:
        """Batches in a pass. Endless loaders have no length."""
        if self._stop is None:
            raise TypeError("an endless stream of batches has no length")
        return self._stop


@dataclass
class Draw:
    """This process's part of the global batch of a step; pixels of resident images (no source) come later."""

    source: ImageSource | None
    sampler: Callable[[int], Tensor]
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


def read_all(source: ImageSource) -> Tensor:
    """All images of a source, uint8 [n, c, h, w]."""
    if isinstance(source, ArraySource):
        return source.images
    images = torch.empty((len(source), source.channels, source.height, source.width), dtype=torch.uint8)
    chunks = torch.split(torch.arange(len(source)), 1024)
    bar = Bar(source.read_batches(chunks), "reading images", len(chunks), leave=False, disable=None)
    for indices, part in zip(chunks, bar, strict=True):
        images[indices] = part
    return images
