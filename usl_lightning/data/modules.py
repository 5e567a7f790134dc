"""Lightning data modules: one for each kind of stage."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Required, Unpack

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.machine import cores
from usl_lightning.base.ranges import SEED, Ranged, Ranges, one_of, whole
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.opening import Looks, has_split, open_source, read_labels
from usl_lightning.data.images.rendering import WHITE, colour_of
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.images.subset import SubsetSource
from usl_lightning.data.keys import permutation
from usl_lightning.data.passes import batch_that_fits, pass_over
from usl_lightning.data.sampling import (
    BalancedSampler,
    Draw,
    Pass,
    StepLoader,
    StepSampler,
    both,
    monitored,
    process_range,
    process_slots,
    read_all,
)
from usl_lightning.labels import LabelIndex

log = logging.getLogger("usl_lightning")

CPU_RESIDENT_BYTES = 1 << 30
"""Images up to this size are kept decoded in memory on a CPU; on CUDA, up to a quarter of its memory."""

RESIDENT_FILES = 20_000
"""Folders of more files are streamed unless they have a decoded cache: decoding all first would delay the start."""

GUESSED = 2_048
"""Unlabelled images whose pseudo-labels a validation looks at: the standard error of a share is 1%."""


class ImageOptions(Looks, total=False):
    """Parameters that data modules hand on to `ImageData`; each has a batch size of its own."""

    dataset: Required[str]
    dir: str | None
    split: str
    cache: str | None
    download: bool
    subset_file: str | None
    residence: Literal["auto", "device", "stream"]
    workers: int | None
    eval_batch_size: int
    seed: int


class LabelledOptions(ImageOptions, total=False):
    """Parameters that data modules hand on to `LabelledData`."""

    oracle_labels: bool
    unanswered: Literal["refuse", "leave_out"]


class ImageData(Ranged, LightningDataModule):
    """Images without labels: random batches to learn features from, whole-set passes to measure and select.

    Training batches carry the label -1 only. Whole-set passes carry the data set's own labels, for reports.

    Args:
        dataset: a named set (digits, fashion_mnist, cifar10, …) or `folder`.
        batch_size: images of the global batch, over all processes. Under gradient accumulation a step takes several
            such batches; a contrastive loss still compares within one.
        dir: the data folder; default: $USL_DATA, then ./data. For `folder`, the folder itself.
        split: the split to learn and select from.
        image_size: images are resized to this many pixels a side; default: as they are.
        channels: 1 or 3; default: as they are.
        labels_file: CSV of labels (file,label) for a folder.
        class_list: file with the class names to keep (ImageNet-100).
        classes: for a folder whose sub-folders are no classes, the names that people will label by, or []: no image
            has a label then.
        on_error: `fail` on an unreadable image, or `skip` it.
        background: the colour that transparent pixels of image files are laid on: a name (white), or "#rrggbb".
        cache: folder for a decoded copy of the images, built once.
        download: fetch the data set if it is missing.
        subset_file: a label index (`usl labels draw` writes one): the images of the split that it names are all there
            are. Its labels are not looked at.
        residence: `device` keeps all images decoded on the device, `stream` reads them as they are needed,
            `auto` takes `device` for sets that fit.
        workers: processes that read streamed images; default: the cores, 8 at most.
        eval_batch_size: images in a batch of a whole-set pass, on each process.
        seed: of the images' order and of all augmentations; the command line sets it to `seed_everything`.

    Attributes:
        needs: parameters that must be given, see `models/method.py`.
        revision: of which images are drawn when; raised in the body of a class that changes, see `models/method.py`.
    """

    needs: tuple[str, ...] = ()

    ranges: ClassVar[Ranges] = {
        "batch_size": whole(1),
        "image_size": whole(1),
        "channels": one_of(1, 3),
        "workers": whole(0),
        "eval_batch_size": whole(1),
        "seed": SEED,
    }
    revision: int = 1

    def __init__(
        self,
        dataset: str,
        batch_size: int = 256,
        dir: str | None = None,
        split: str = "train",
        image_size: int | None = None,
        channels: int | None = None,
        labels_file: str | None = None,
        class_list: str | None = None,
        classes: list[str] | None = None,
        on_error: Literal["fail", "skip"] = "fail",
        background: str = WHITE,
        cache: str | None = None,
        download: bool = False,
        subset_file: str | None = None,
        residence: Literal["auto", "device", "stream"] = "auto",
        workers: int | None = None,
        eval_batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        colour_of(background)
        self.dataset, self.split, self.batch_size, self.seed = dataset, split, batch_size, seed
        self.residence, self.workers, self.eval_batch_size = residence, workers, eval_batch_size
        self._open: Callable[..., ImageSource] = partial(
            open_source,
            dataset,
            dir=dir,
            image_size=image_size,
            channels=channels,
            labels_file=labels_file,
            class_list=class_list,
            classes=classes,
            on_error=on_error,
            background=background,
            cache=cache,
            download=download,
        )
        self.subset_file = subset_file
        self.has_test = has_split(dataset, "test", dir=dir)
        self.lowered: dict[str, int] = {}
        """Parameters that were used with less than was given, as there are so few images."""
        self._sources: dict[str, ImageSource] = {}
        self._resident: dict[str, Tensor] = {}
        self._seen: dict[str, ImageSource] = {}

    def __str__(self) -> str:
        """Short: Lightning's own opens all loaders, which messages about a mistake cannot wait for."""
        return f"{type(self).__name__}({self.dataset}, {self.split})"

    # What a model and a report ask for.

    def source(self, split: str) -> ImageSource:
        """The images of a split, opened once."""
        if split not in self._sources:
            self._sources[split] = self._open(split, subset_file=self.subset_file if split == self.split else None)
        return self._sources[split]

    def seen(self, split: str) -> ImageSource:
        """The images of a split as the trainer's model looks at them: others than `source` if it has a size of its own.

        In training a model takes them as they are.
        """
        sees = getattr(getattr(self.trainer, "lightning_module", None), "sees", None)
        if sees is None:
            return self.source(split)
        if split not in self._seen:
            self._seen[split] = sees(self.source(split))
        return self._seen[split]

    def pass_batch_size(self, seen: ImageSource, own: ImageSource, device: torch.device) -> int:
        """Images in a batch of a pass: `eval_batch_size`, or fewer where a model looks at larger ones than its own."""
        if seen.height * seen.width <= own.height * own.width:
            return self.eval_batch_size
        return min(self.eval_batch_size, batch_that_fits(seen, device))

    @property
    def train_source(self) -> ImageSource:
        """The images to learn and select from."""
        return self.source(self.split)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty when unknown."""
        return self.train_source.classes

    @property
    def spec(self) -> ImageSpec:
        """What a network must know of these images."""
        source = self.train_source
        mean, std = source.statistics()
        return ImageSpec(source.channels, source.height, source.width, mean, std, self.classes, len(source))

    # Loaders.

    def setup(self, stage: str) -> None:
        """Open the images and decide where they live."""
        splits = [self.split, "test"] if self.has_test else [self.split]
        for split in splits:
            source = self.source(split)
            if self.seen(split) is source and self._is_resident(source) and split not in self._resident:
                self._resident[split] = read_all(source).to(self._device)

    def train_dataloader(self) -> StepLoader[Any]:
        """Endless batches that start where the trainer stands."""
        return self._steps(self._draw("images", self.batch_size))

    def val_dataloader(self) -> list[StepLoader[Batch]]:
        """Passes over the training images (the bank of a kNN classifier) and over the test images.

        Amid training, over the few of them that `monitored` allows.
        """
        splits = [self.split, "test"] if self.has_test else [self.split]
        if self.trainer is None or self.trainer.state.fn != "fit":
            return [self._pass(split) for split in splits]
        sizes = [len(self.source(split)) for split in splits]
        every = self.trainer.val_check_interval
        trained = every * self.batch_size if isinstance(every, int) else sizes[0]
        looked_at = monitored(sizes, trained, self.seed, processes=self._processes[1])
        return [self._pass(split, images=images) for split, images in zip(splits, looked_at, strict=True)]

    def test_dataloader(self) -> list[StepLoader[Batch]]:
        """As `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> StepLoader[Batch]:
        """A pass over the images to select from."""
        return self._pass(self.split)

    def whole_set(self, first: int = 0) -> Iterator[Batch]:
        """This process's share of the images to learn from, once, in order, on the device; also amid training.

        `gather_uneven` of what is computed from it is in the order of the data set.

        Args:
            first: begin with this batch, for a pass that was interrupted.
        """
        for batch in self._pass(self.split, first):
            yield self.on_after_batch_transfer(batch.to(self._device, non_blocking=True), 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Fill in the pixels of images that are resident on the device."""
        if isinstance(batch, tuple):
            return type(batch)(*(self.on_after_batch_transfer(part, dataloader_idx) for part in batch))
        if batch.split in self._resident and not batch.images.numel():
            batch.images = self._resident[batch.split][batch.indices]
        return batch

    def _draw(self, name: str, size: int, pool: Tensor | None = None, labels: Tensor | None = None) -> Draw:
        """Global batches of `size` places, from `pool` (positions in the data set; None: all of it)."""
        count = len(self.train_source) if pool is None else len(pool)
        sampler = StepSampler(count, size, self.seed, name)
        return Draw(self._reader(self.split), sampler, self._slots(size), self.seed, name, self.split, pool, labels)

    def _reader(self, split: str) -> ImageSource | None:
        return None if split in self._resident else self.source(split)

    def _steps(self, make: Callable[[int], Any]) -> StepLoader[Any]:
        return StepLoader(make, first=self._first_batch, workers=self._workers(self.split), pin=self._on_cuda)

    def _pass(self, split: str, first: int = 0, images: Tensor | None = None) -> StepLoader[Batch]:
        rank, world = self._processes
        images = torch.arange(len(self.source(split))) if images is None else images
        own = process_range(len(images), rank, world)
        share = images[own.start : own.stop]
        seen = self.seen(split)
        if seen is not self.source(split):
            size = self.pass_batch_size(seen, self.train_source, self._device)
            return pass_over(seen, share, size, seed=self.seed, workers=self.workers, first=first, pin=self._on_cuda)
        batches = -(-len(share) // self.eval_batch_size)
        return StepLoader(
            Pass(self._reader(split), self.source(split).labels, share, self.eval_batch_size, self.seed, split),
            first=lambda: first,
            stop=batches,
            workers=self._workers(split),
            pin=self._on_cuda,
        )

    # Where and how.

    def _first_batch(self) -> int:
        trainer = self.trainer
        return 0 if trainer is None else trainer.global_step * trainer.accumulate_grad_batches

    @property
    def _processes(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _slots(self, batch_size: int) -> Tensor:
        return process_slots(batch_size, *self._processes)

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @property
    def _on_cuda(self) -> bool:
        return self._device.type == "cuda"

    def _is_resident(self, source: ImageSource) -> bool:
        if self.residence != "auto":
            return self.residence == "device"
        whole = source.whole if isinstance(source, SubsetSource) else source
        if isinstance(whole, FolderSource) and len(source) > RESIDENT_FILES:
            return False
        device = self._device
        limit = CPU_RESIDENT_BYTES
        if device.type == "cuda":
            limit = torch.cuda.get_device_properties(device).total_memory // 4
        return source.nbytes <= limit

    def _workers(self, split: str) -> int:
        if split in self._resident:
            return 0
        return min(8, cores()) if self.workers is None else self.workers


class LabelledData(ImageData):
    """The labelled images alone, for supervised training.

    Args:
        labels: the label index, which must be given; only its entries ever carry a label into training.
        oracle_labels: instead of an index, train on every label the data set has: an upper bound to compare with.
        batch_size: B, labelled images of the global batch. With fewer labels than B they repeat.
        unanswered: what to do while images of the index have no label yet: refuse to train, or leave them out, so that
            a person may stop whenever they like.
        images: as for `ImageData`.
    """

    needs = ("labels or oracle_labels",)

    def __init__(
        self,
        labels: str | None = None,
        oracle_labels: bool = False,
        batch_size: int = 64,
        unanswered: Literal["refuse", "leave_out"] = "refuse",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(batch_size=batch_size, **images)
        self.labels, self.oracle_labels, self.unanswered = labels, oracle_labels, unanswered
        self._index: LabelIndex | None = None

    @property
    def index(self) -> LabelIndex:
        """The label index, read once and checked against the images."""
        if self._index is None:
            self._index = self._read_index()
        return self._index

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order: the label index's, which alone may be known."""
        return tuple(self.index.classes) or self.train_source.classes

    def setup(self, stage: str) -> None:
        """Open the images; before training, warn of classes without a label."""
        super().setup(stage)
        if stage == "fit" and self._processes[0] == 0:
            self.warn_of_missing_classes()

    def warn_of_missing_classes(self, so: str = "images of them will be taken for others") -> None:
        """Say which classes no label is of, and what comes of it."""
        labelled = set(self.index.for_training()[1])
        missing = [name for number, name in enumerate(self.classes) if number not in labelled]
        if missing:
            some = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
            log.warning(
                "%s: no label of %d of the %d classes (%s); %s",
                self.labels, len(missing), len(self.classes), some, so,
            )  # fmt: skip

    def train_dataloader(self) -> StepLoader[Any]:
        """Endless batches of labelled images that start where the trainer stands."""
        return self._steps(self._draw_labelled())

    def val_dataloader(self) -> list[StepLoader[Batch]]:
        """A pass over the test images, if there are any."""
        return [self._pass("test")] if self.has_test else []

    def _read_index(self) -> LabelIndex:
        if self.oracle_labels:
            if self.labels is not None:
                raise UslError(f"data.oracle_labels: true takes every label of the data set; leave out {self.labels}")
            return _every_label(self.train_source)
        if self.labels is None:
            raise UslError("data.labels: expected a label index; `usl select` writes one")
        index = read_labels(self.labels, self.train_source)
        return index.answered if self.unanswered == "leave_out" else index

    def _draw_labelled(self) -> Draw:
        indices, labels = (torch.tensor(column) for column in self.index.for_training())
        return self._draw("labelled", self.batch_size, indices, labels)


class SemiSupervisedData(LabelledData):
    """A few labelled images and many unlabelled ones.

    Args:
        labels: the label index, which must be given; only its entries ever carry a label into training.
        batch_size: B, labelled images of the global batch. With fewer labels than B they repeat.
        unlabelled_ratio: μ; the global batch has μB unlabelled images.
        include_labelled: the labelled images are among the unlabelled ones too (FixMatch's default).
        labelled_per_class: instead of B labelled images draw this many of each class, repeated where there are fewer.
        classes_per_step: with that, of how many classes in a step; default: of all that have a label.
        images: as for `LabelledData`.

    Raises:
        UslError: `classes_per_step` without `labelled_per_class`.
    """

    ranges: ClassVar[Ranges] = {
        "unlabelled_ratio": whole(1),
        "labelled_per_class": whole(1),
        "classes_per_step": whole(1),
    }

    def __init__(
        self,
        labels: str | None = None,
        batch_size: int = 64,
        unlabelled_ratio: int = 7,
        include_labelled: bool = True,
        labelled_per_class: int | None = None,
        classes_per_step: int | None = None,
        **images: Unpack[LabelledOptions],
    ) -> None:
        super().__init__(labels, batch_size=batch_size, **images)
        self.unlabelled_ratio, self.include_labelled = unlabelled_ratio, include_labelled
        self.labelled_per_class, self.classes_per_step = labelled_per_class, classes_per_step
        if classes_per_step is not None and labelled_per_class is None:
            raise UslError("data.classes_per_step: expected with data.labelled_per_class alone")

    def setup(self, stage: str) -> None:
        """Open the images; before training, warn of classes without a label, or with fewer than a step draws."""
        super().setup(stage)
        if stage != "fit" or self.labelled_per_class is None:
            return
        counts = torch.bincount(torch.tensor(self.index.for_training()[1]))
        counts = counts[counts > 0]
        if self.classes_per_step is not None and self.classes_per_step > len(counts):
            raise UslError(f"data.classes_per_step: {self.classes_per_step}, but {len(counts)} classes have a label")
        few = counts < self.labelled_per_class
        if self._processes[0] == 0 and few.any():
            log.warning(
                "data.labelled_per_class: %d, but %d of the %d labelled classes have fewer labels (the rarest %d); "
                "their images are repeated in a step",
                self.labelled_per_class, int(few.sum()), len(counts), int(counts.min()),
            )  # fmt: skip

    @property
    def unlabelled_count(self) -> int:
        """Images that training draws unlabelled ones from."""
        return len(self._unlabelled(torch.tensor(self.index.for_training()[0])))

    def train_dataloader(self) -> StepLoader[Any]:
        """Endless `SemiBatch`es that start where the trainer stands."""
        draw_labelled = self._draw_labelled()
        unlabelled = self._unlabelled(torch.tensor(self.index.for_training()[0]))
        draw_unlabelled = self._draw("unlabelled", self.batch_size * self.unlabelled_ratio, unlabelled)
        return self._steps(partial(both, draw_labelled, draw_unlabelled))

    def val_dataloader(self) -> list[StepLoader[Batch]]:
        """A pass over the test images, if there are any, and one over some unlabelled images, the same every time.

        `Batch.split` tells them apart.
        """
        test = super().val_dataloader()
        if self.labels is None and not self.oracle_labels:
            return test
        rest = torch.arange(len(self.train_source))
        rest = rest[~torch.isin(rest, torch.tensor(self.index.indices))]
        some = rest[permutation(len(rest), self.seed, "guesses")[:GUESSED]].sort().values
        return [*test, self._pass(self.split, images=some)] if len(some) else test

    def _draw_labelled(self) -> Draw:
        draw = super()._draw_labelled()
        if self.labelled_per_class is None or draw.labels is None:
            return draw
        sampler = BalancedSampler(draw.labels, self.labelled_per_class, self.classes_per_step, self.seed, draw.name)
        if sampler.batch_size % self._processes[1]:
            raise UslError(
                f"data.labelled_per_class: {self.labelled_per_class} make {sampler.batch_size} images, which cannot be "
                f"divided over {self._processes[1]} processes"
            )
        return replace(draw, sampler=sampler, slots=self._slots(sampler.batch_size))

    def _unlabelled(self, labelled: Tensor) -> Tensor:
        everything = torch.arange(len(self.train_source))
        if self.include_labelled:
            return everything
        rest = everything[~torch.isin(everything, labelled)]
        if not len(rest):
            where = self.labels or "the index of all labels"
            raise UslError(f"data.include_labelled: every image is in {where}, so no unlabelled one is left")
        return rest


def _every_label(source: ImageSource) -> LabelIndex:
    """An index of all images that have a label.

    Raises:
        UslError: none has.
    """
    known = (source.labels >= 0).nonzero()[:, 0]
    if not len(known):
        raise UslError("data.oracle_labels: the data set has no labels; label some images and give data.labels")
    labels = tuple(source.labels[known].tolist())
    return LabelIndex(None, {"name": "oracle"}, tuple(known.tolist()), labels, source.classes)
