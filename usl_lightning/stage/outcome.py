"""What a selection leaves: the label index of the chosen images, and how good they are."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from usl_lightning.base.files import write_json
from usl_lightning.data.images.source import ImageSource, dataset_id
from usl_lightning.engine.wandb_run import finish_wandb
from usl_lightning.evaluation.label_quality import label_quality
from usl_lightning.labels import LabelIndex
from usl_lightning.pictures.gallery import chosen_strip
from usl_lightning.stage.captions import SHOWN, captions
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.next_command import next_command
from usl_lightning.stage.parser import StageCLI


def finish(cli: StageCLI, trainer: Trainer, metrics: Mapping[str, Any], index: LabelIndex | None = None) -> None:
    """Write what the stage leaves and print its metrics, on the main process; of a selection with its `index`."""
    if not trainer.is_global_zero:
        return
    folder = StageFolder(cli.stage.run_dir)
    folder.files.mkdir(exist_ok=True)
    cli.model.write_outputs(folder.files)
    with suppress(OSError):
        folder.files.rmdir()  # most stages leave none
    write_json(folder.result, metrics)
    shown = ", ".join(text for name, value in metrics.items() if (text := _shown(name, value)))
    if cli.wandb is not None:
        labels = folder.labels if cli.stage.command == "select" else getattr(cli.datamodule, "labels", None)
        finish_wandb(cli.wandb, metrics, labels and Path(labels))
    print(f"{cli.stage.run_dir}: done{': ' + shown if shown else ''}", flush=True)
    if not folder.in_chain:  # a chain says what is next itself, at its end
        print(next_command(cli.stage, cli.model.verbs, index), flush=True)


def _shown(name: str, value: Any) -> str:
    """A figure, or an interval; nothing of other lists, nor a second figure of the same kind, which result.json has."""
    if name.endswith("_online"):
        return ""
    if name.endswith("_interval"):
        return f"{name} {value[0]:.4f}-{value[1]:.4f}"
    if isinstance(value, list):
        return ""
    return f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"


def chosen_index(
    source: ImageSource,
    indices: Tensor,
    method: dict[str, Any],
    kept: LabelIndex | None,
    followers: tuple[tuple[int, ...], ...] = (),
) -> LabelIndex:
    """The label index of a selection. No label is looked up but those of the chosen images.

    Args:
        source: the images.
        indices: int64 [m], the kept ones first.
        method: its name, seed and parameters.
        kept: the images that were to be kept; a label they have there stands, whatever the data set says.
        followers: see `LabelIndex`.
    """
    positions = indices.tolist()
    labels = [None if label < 0 else int(label) for label in source.labels[indices].tolist()]
    classes, unsure, bulk, added = source.classes, set[int](), set[int](), set[int]()
    if kept is not None:
        labels[: len(kept)] = [
            own if own is not None else known for own, known in zip(kept.labels, labels, strict=False)
        ]
        classes, unsure = max(classes, kept.classes, key=len), set(kept.unsure)  # people may have added some
        bulk, added = set(kept.bulk), set(kept.added)
    return LabelIndex(
        dataset=dataset_id(source),
        method=method,
        indices=tuple(positions),
        labels=tuple(labels),
        classes=classes,
        files=None if source.files is None else tuple(source.files[i] for i in positions),
        unsure=tuple(i for i, label in zip(positions, labels, strict=True) if label is None and i in unsure),
        followers=followers,
        hashes=() if source.files is None else tuple(source.content_hashes(positions)),
        bulk=tuple(i for i, label in zip(positions, labels, strict=True) if label is not None and i in bulk),
        added=tuple(i for i in positions if i in added),
    )


def chosen_quality(index: LabelIndex, source: ImageSource, features: Tensor) -> dict[str, Any]:
    """How good the chosen images are, if all of their labels are known; see `LabelQuality`. Nothing chooses by it.

    The labels of the whole set are read here, for these figures alone.

    Args:
        index: the chosen images.
        source: the images they were chosen from.
        features: [n, d] of all images; with d = 0, or a row of zeros, which has no direction, the figures that
            need distances are left out.

    Returns:
        The figures that can be told; none if a chosen image has no label.
    """
    if not index.classes or None in index.labels:
        return {}
    chosen, labels = torch.tensor(index.indices), source.labels.clone()
    labels[chosen] = torch.tensor(index.labels)
    shown = features if bool(features.any(1).all()) else None
    quality = label_quality(labels, chosen, shown, num_classes=len(index.classes))
    return {name: value for name, value in quality.items() if value is not None}


def draw_chosen(index: LabelIndex, source: ImageSource, path: Path) -> None:
    """Write a picture of the chosen images, of the first `SHOWN` at most, which is then said.

    Args:
        index: the chosen images.
        source: the images they were chosen from.
        path: the PNG.
    """
    chosen_strip(source.read(torch.tensor(index.picks.indices[:SHOWN])), captions(index), path)
    if index.chosen > SHOWN:
        print(f"{path}: the first {SHOWN} of the {index.chosen} chosen images")


def print_quality(metrics: Mapping[str, Any]) -> None:
    """Print the figures of `chosen_quality`, those that there are."""
    counts = metrics.get("class_counts")
    if counts is None:
        return
    print(f"classes covered      {metrics['classes_covered']} of {len(counts)}")
    print(f"images of a class    {min(counts)} to {max(counts)}: {_short(counts)}")
    for name, value in metrics.items():
        if isinstance(value, float):
            print(f"{name.replace('_', ' '):20} {value:.4f}")


def _short(counts: list[int]) -> str:
    shown = " ".join(map(str, counts[:40]))
    return shown if len(counts) <= 40 else f"{shown} …"
