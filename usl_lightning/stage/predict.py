"""`usl predict`: the class of every image of a split or a folder, and how probable it is."""

import csv
import io
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from usl_lightning.base.atomic import check_replaceable
from usl_lightning.base.documents import guarded
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import not_a_folder, write_text
from usl_lightning.base.machine import cores
from usl_lightning.compute.distributed import gather_uneven
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.folder_source import FolderSource, open_images
from usl_lightning.data.images.shards import is_place
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.images.walk import UnreadableImageError
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import StepLoader, process_range
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.sorting import check_sorting, sort_into


class Predictions(NamedTuple):
    """What a classifier says of n images.

    Attributes:
        labels: int64 [n], the most probable class of each.
        probabilities: float32 [n], of that class.
        rows: float32 [n, classes], of every class; None if they were not kept.
        images: int64 [n], which they are of the source; None: all of it, in order.
    """

    labels: Tensor
    probabilities: Tensor
    rows: Tensor | None = None
    images: Tensor | None = None


UNREAD = -2
"""In place of a label: the image cannot be read any more, nothing is said of it."""

COLUMNS, LEFT_OUT_COLUMNS = ("image", "label", "probability"), ("image", "problem")


def predict(
    cli: StageCLI, trainer: Trainer, checkpoint: Path | None, begin: Callable[[], None], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the verb: write a CSV with file or number of the image, class and its probability.

    Files of a folder that cannot be read, or not any more, are left out and listed in a CSV beside it, unless
    `data.on_error` is typed.
    With `--sort-into` the files are copied into a folder for each class, too.
    """
    data, options, image = cli.datamodule, cli.stage.options, cli.model.image
    what = options.get("split") or (Path(options["folder"]).resolve().name if "folder" in options else "")
    path = Path(options.get("out", cli.stage.run_dir / f"predictions{'_' if what else ''}{what}.csv"))
    left_out = path.with_name(f"{path.stem}_left_out.csv")
    for file, columns in ((path, COLUMNS), (left_out, LEFT_OUT_COLUMNS)):
        start = ",".join(columns).encode()
        check_replaceable(file, lambda content, start=start: content.startswith(start), "usl predict: --out")  # type: ignore[misc]
    typed = cli.config.data.init_args
    on_error: Literal["fail", "skip"] = typed.on_error if "data.on_error" in cli.stage.overrides else "skip"
    own = images_to_predict(data, image, options, on_error, typed.background)
    source = checked(cli.model.sees(own), image)
    target = Path(options["sort-into"]) if "sort-into" in options else None
    if target is not None:
        check_sorting(source, target)
    size = data.pass_batch_size(source, own, trainer.strategy.root_device)
    every = _every_probability(options)
    skip = on_error == "skip" and "folder" in options
    told = classify(
        trainer, cli.model, source, batch_size=size, checkpoint=checkpoint, workers=data.workers, every=every, skip=skip
    )
    if trainer.is_global_zero:
        problems = {**source.problems, **_unread(source, told)} if isinstance(source, FolderSource) else {}
        write_text(path, predictions_csv(source, told, image.classes))
        left_out.unlink(missing_ok=True)  # of an earlier time
        more = f"; {_counted(len(problems))} left out, listed with the reason in {left_out}" if problems else ""
        if problems:
            write_text(left_out, problems_csv(problems))
        print(f"{len(told.labels)} predictions: {path}{more}")
        if target is not None and isinstance(source, FolderSource):
            count = sort_into(source, _places(source, told), told.labels.tolist(), image.classes, target)
            print(f"{count} copies, by class: {target}")
        print(_what_next(cli, options))
    return {}


def _every_probability(options: Mapping[str, str]) -> bool:
    given = options.get("all-probabilities", "false")
    if given not in ("true", "false"):
        raise UslError(f"usl predict: --all-probabilities {given}: it takes no value")
    return given == "true"


def _what_next(cli: StageCLI, options: Mapping[str, str]) -> str:
    """The last line: what else can be done with the classifier."""
    run = cli.stage.run_dir
    if "folder" in options and "sort-into" not in options:
        folder = shlex.quote(options["folder"])
        return f"next: usl predict {shlex.quote(str(run))} {folder} --sort-into DIR copies the images by class"
    return f"next: usl export {shlex.quote(str(run))} --out model.onnx makes a file that runs without this package"


def _counted(count: int) -> str:
    return "1 file that cannot be read is" if count == 1 else f"{count} files that cannot be read are"


def images_to_predict(
    data: ImageData,
    image: ImageSpec,
    options: Mapping[str, str],
    on_error: Literal["fail", "skip"],
    background: str,
) -> ImageSource:
    """The images asked for; a folder of others is opened without the images of the training.

    Args:
        data: that of the training.
        image: what the classifier was trained on: images of a folder are brought to its size and channels.
        options: `folder`: any folder of images, nested or flat, or `split` of the data set; neither: the images that
            were trained on.
        on_error: what to do with an unreadable file of the folder: stop, or leave it out and say so.
        background: what transparent pixels of the folder's images are laid on.

    Raises:
        UslError: both are given, or there is no such folder or split.
    """
    if "folder" not in options:
        return data.source(options.get("split", data.split))
    if "split" in options:
        raise UslError("usl predict: --folder and --split are both given; expected one of them")
    folder = os.path.expanduser(options["folder"])
    if not is_place(folder):
        raise UslError(f"usl predict: --folder: {not_a_folder(folder)}: {options['folder']}")
    size = image.height if image.height == image.width else None
    return open_images(
        options["folder"], image_size=size, channels=image.channels, on_error=on_error, background=background
    )


def checked(seen: ImageSource, image: ImageSpec) -> ImageSource:
    """The images as the classifier sees them.

    Raises:
        UslError: they are not of the shape that it was trained on.
    """
    found, expected = ((i.channels, i.height, i.width) for i in (seen, image))
    if found != expected:
        raise UslError(
            f"usl predict: the images are {_shape(found)} (channels × height × width), the classifier was trained on "
            f"{_shape(expected)}; set data.image_size and data.channels as in the training"
        )
    return seen


def classify(
    trainer: Trainer,
    model: LightningModule,
    source: ImageSource,
    *,
    batch_size: int,
    checkpoint: Any,
    workers: int | None,
    every: bool = False,
    skip: bool = False,
) -> Predictions:
    """What the classifier says of each image, in order, on the CPU.

    Args:
        trainer: tells on which devices.
        model: its `predict_step` gives probabilities [b, classes].
        source: the n images.
        batch_size: images in a batch, on each process.
        checkpoint: the weights.
        workers: processes that read files; None: the cores, 8 at most.
        every: keep the probability of every class, not of the likeliest alone.
        skip: leave out images that cannot be read any more.

    Raises:
        UslError: an image cannot be read; with `skip`, none can.
    """
    share = process_range(len(source), trainer.global_rank, trainer.world_size)
    processes = (min(8, cores()) if workers is None else workers) if isinstance(source, FolderSource) else 0
    loader = StepLoader(_Reading(source, share, batch_size, skip), stop=-(-len(share) // batch_size), workers=processes)
    best = _Best(every)
    trainer.callbacks.append(best)  # type: ignore[attr-defined]
    trainer.predict(model, dataloaders=loader, ckpt_path=checkpoint, return_predictions=False)
    device = trainer.strategy.root_device
    kept = (best.values, best.labels, best.images, *([best.rows] if every else []))
    probabilities, labels, images, *rows = (gather_uneven(torch.cat(parts).to(device)).cpu() for parts in kept)
    if not len(images):
        raise UslError(f"usl predict: none of the {len(source)} images can be read any more; are they still there?")
    return Predictions(labels, probabilities, rows[0] if rows else None, images)


def predictions_csv(source: ImageSource, told: Predictions, classes: Sequence[str]) -> str:
    """`image,label,probability`: the file, or the number of the image; the name of the class; to six places.

    Where the probability of every class is known, a column `probability of CLASS` for each follows. No cell is a
    formula to a spreadsheet.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    every = [] if told.rows is None else [f"probability of {name}" for name in classes]
    writer.writerow([*COLUMNS, *every])
    names = source.files or range(len(source))
    for number, (place, label) in enumerate(zip(_places(source, told), told.labels.tolist(), strict=True)):
        row = [] if told.rows is None else told.rows[number].tolist()
        figures = (f"{value:.6f}" for value in (float(told.probabilities[number]), *row))
        writer.writerow([guarded(str(names[place])), guarded(classes[label]), *figures])
    return text.getvalue()


def _places(source: ImageSource, told: Predictions) -> Sequence[int]:
    return range(len(source)) if told.images is None else told.images.tolist()


def _unread(source: FolderSource, told: Predictions) -> dict[str, str]:
    """The files that could not be read any more, and why."""
    problems: dict[str, str] = {}
    assert source.files is not None
    for place in sorted({*range(len(source))} - {*_places(source, told)}):
        problems[source.files[place]] = "could not be read for a while"
        try:
            source.read(torch.tensor([place]))
        except UnreadableImageError as error:
            problems[source.files[place]] = str(error).removeprefix(f"{source.root / source.files[place]}: ")
    return problems


def problems_csv(problems: Mapping[str, str]) -> str:
    """`image,problem`: each file that was left out, and why. No cell is a formula to a spreadsheet."""
    text = io.StringIO()
    rows = ((guarded(file), guarded(problem)) for file, problem in problems.items())
    csv.writer(text, lineterminator="\n").writerows([LEFT_OUT_COLUMNS, *rows])
    return text.getvalue()


class _Best(Callback):
    """Keeps the largest probability of each image; all of them would be gigabytes for a thousand classes.

    Args:
        every: keep them all the same.
    """

    def __init__(self, every: bool) -> None:
        self.every = every
        self.values, self.labels = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
        self.images, self.rows = [torch.empty(0, dtype=torch.long)], list[Tensor]()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One more batch."""
        read = batch.labels != UNREAD
        value, label = outputs[read].max(1)
        self.values.append(value.cpu())
        self.labels.append(label.cpu())
        self.images.append(batch.indices[read].cpu())
        if self.every:
            self.rows.append(outputs[read].float().cpu())


@dataclass
class _Reading:
    """The batches of this process's share of a source, without labels; with `skip`, images may become unreadable."""

    source: ImageSource
    share: range
    batch_size: int
    skip: bool = False

    def __call__(self, number: int) -> Batch:
        chunk = self.share[number * self.batch_size : (number + 1) * self.batch_size]
        indices = torch.arange(chunk.start, chunk.stop)
        key, labels = Key.of("predict", slots=indices), torch.full_like(indices, -1)
        try:
            images = self.source.read(indices)
        except UnreadableImageError:
            if not self.skip:
                raise
            images = self._one_by_one(indices, labels)
        return Batch(images, labels, indices, key, self.source.split)

    def _one_by_one(self, indices: Tensor, labels: Tensor) -> Tensor:
        """The images; those that cannot be read are black, and their `labels` become `UNREAD`."""
        shape = len(indices), self.source.channels, self.source.height, self.source.width
        images = torch.zeros(shape, dtype=torch.uint8)
        for slot in range(len(indices)):
            try:
                images[slot] = self.source.read(indices[slot : slot + 1])[0]
            except UnreadableImageError:
                labels[slot] = UNREAD
        return images


def _shape(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
