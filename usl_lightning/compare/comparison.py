"""Runs a comparison of selectors: cell by cell, each on disk as it is done, then the tables and the plot."""

import csv
import hashlib
import io
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from usl_lightning.base.documents import guarded
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.files import read_json, sha256_of_file, write_json, write_text
from usl_lightning.base.version import __version__
from usl_lightning.compare.classified import classified_accuracy
from usl_lightning.compare.overlap import overlap_csv, overlaps
from usl_lightning.compare.spec import CLASSIFIERS, Comparison, Entry
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.modules import ImageData
from usl_lightning.engine.logs import show_messages
from usl_lightning.engine.trainer import Trainer
from usl_lightning.evaluation.label_quality import label_quality
from usl_lightning.pictures.curves import Curve, Panel, draw_curves
from usl_lightning.selection.coreset import Coreset
from usl_lightning.selection.selector import Selector
from usl_lightning.stage.complaints import explain
from usl_lightning.stage.identity import digest, names_a_file, revision_of
from usl_lightning.stage.next_command import config_beside
from usl_lightning.stage.parser import shielded
from usl_lightning.stage.select import choose
from usl_lightning.stage.words import StageCommand
from usl_lightning.vectors.memory import once, remembering

FIGURES = ("classes_covered", "balance", "mean_density", "spread", "coverage_distance", "propagated_accuracy")
"""Of `LabelQuality`, the columns of the table."""

SHOWN = {"classes_covered": "classes covered", "propagated_accuracy": "propagated accuracy"}
"""What is printed and drawn against the budget."""

Cell = dict[str, Any]
"""One selection as its file has it: selector, budget, seed, seconds, indices, the figures, and what it is made of."""


@dataclass(frozen=True)
class _Ground:
    """What all cells share."""

    data: ImageData
    image: ImageSpec
    features: Tensor
    about: dict[str, Any]


def compare(comparison: Comparison) -> list[Cell]:
    """Run what is missing, write `table.csv`, `table.json`, `overlap.csv` and `comparison.png`, and print the tables.

    Labels are read for the figures alone. What several choices ask of the same features (neighbours, k-means, mean
    similarities; the choice itself where no seed can change it) is computed once, and is in the seconds of the first
    that asks.

    Returns:
        The cells, by selector, budget and seed in the order of the configuration.

    Raises:
        UslError: a selector, a parameter or a budget that does not fit; before anything is chosen.
    """
    show_messages()
    data = _data(comparison)
    image = data.spec
    _check(comparison, data)
    for entry in comparison.selectors:
        for budget in comparison.budgets:
            build_selector(entry, image, budget, f"{comparison.path}: selectors: {entry.name}")
    features = choose(_trainer(), Coreset(image=image, budget=1, **comparison.features), data).evidence
    ground = _Ground(data, image, features, _about(data, features))
    cells = []
    wanted = [(e, b, s) for e in comparison.selectors for b in comparison.budgets for s in comparison.seeds]
    with remembering():
        for number, (entry, budget, seed) in enumerate(wanted, 1):
            cells.append(_cell(comparison.out / "cells", ground, entry, budget, seed, comparison.classifiers))
            print(f"{number:4} of {len(wanted)}  {_line(cells[-1])}", flush=True)
    classified = {f"{name}_accuracy": f"accuracy by {name}" for name in comparison.classifiers}
    summary = summarise(cells, classified)
    write_text(comparison.out / "table.csv", _csv(cells, classified))
    write_json(comparison.out / "table.json", {"about": ground.about, "classes": image.classes, "summary": summary})
    write_text(comparison.out / "overlap.csv", overlap_csv(overlaps(cells)))
    draw_comparison(summary, comparison.out / "comparison.png", len(image.classes), classified)
    print(f"\n{tables(summary, classified)}\n\n{comparison.out}: table.csv, table.json, overlap.csv, comparison.png")
    after = config_beside(comparison.path, "usl")
    print(f"next: usl select --config {after} picks images; other selectors have other names, see usl configs")
    return cells


# what is compared ----------------------------------------------------------------------------------------


def _data(comparison: Comparison) -> ImageData:
    options: dict[str, Any] = _checked(ImageData, comparison.data, {"seed"}, f"{comparison.path}: data")
    return ImageData(**options)


def _check(comparison: Comparison, data: ImageData) -> None:
    source = data.train_source
    if max(comparison.budgets) > len(source):
        raise UslError(
            f"{comparison.path}: budgets: {max(comparison.budgets)} of {len(source)} images cannot be picked"
        )
    if not source.classes or not bool((source.labels >= 0).any()):
        raise UslError(
            f"{comparison.path}: data.dataset: no image of {source.name} has a label; the figures of a comparison "
            "need them (its choices do not)"
        )


def build_selector(entry: Entry, image: ImageSpec, budget: int, where: str) -> Selector:
    """The selector of an entry.

    Raises:
        UslError: there is no such class, or a parameter does not fit.
    """
    module, _, name = entry.class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UslError(f"{where}: {entry.class_path}: there is no such class ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Selector)):
        raise UslError(f"{where}: {entry.class_path} is not a selector; expected a subclass of Selector")
    options = _checked(found, entry.options, {"image", "budget", "keep_from"}, where)
    return found(image=image, budget=budget, **options)


def _checked(found: type, options: dict[str, Any], elsewhere: set[str], where: str) -> dict[str, Any]:
    """The options, each of the type its parameter has."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(found, skip=elsewhere)
    known = list(parser.get_defaults().keys())
    for key in options:
        if key not in known:
            raise UslError(
                f"{where}: unknown key '{key}'{did_you_mean(key, known)}; expected one of {', '.join(known)}"
            )
    part = {"class_path": f"{found.__module__}.{found.__qualname__}", "init_args": options}
    try:
        parsed = parser.parse_object(shielded({"of": part})["of"]["init_args"]).as_dict()
    except ArgumentError as error:
        raise UslError(f"{where}: {explain(str(error), StageCommand('compare', []), known)}") from error
    return {key: parsed[key] for key in options}


def _trainer() -> Trainer:
    return Trainer(
        accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def _about(data: ImageData, features: Tensor) -> dict[str, Any]:
    """What makes a cell what it is, beside its selector."""
    source = data.train_source
    return {
        "version": __version__,
        "dataset": f"{source.name}/{source.split}",
        "images": len(source),
        "fingerprint": dataset_id(source).fingerprint,
        "labels": _sha256(source.labels),
        "features": _sha256(features.cpu()),
        "dimensions": features.shape[1],
    }


def _sha256(tensor: Tensor) -> str:
    return "sha256:" + hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


# cells ---------------------------------------------------------------------------------------------------


def _cell(folder: Path, ground: _Ground, entry: Entry, budget: int, seed: int, classifiers: tuple[str, ...]) -> Cell:
    """The cell from its file, or computed and written. The file's name has a hash of all that the choice depends on."""
    options = {
        key: sha256_of_file(value) if value is not None and names_a_file(f"model.{key}") else value
        for key, value in entry.options.items()
    }
    about = {**ground.about, "class_path": entry.class_path, "options": options, "budget": budget, "seed": seed}
    if (revision := revision_of(entry.class_path)) > 1:
        about["revision"] = revision
    name = re.sub(r"\W+", "_", entry.class_path.rpartition(".")[2].lower())
    path = folder / f"{name}_{budget}_{seed}_{digest(about).removeprefix('sha256:')[:16]}.json"
    known = _read(path)
    cell = _chosen(ground, entry, budget, seed, about) if known is None else dict(known)
    revisions = dict(cell.get("classifiers", {}))  # of those whose figures are there
    missing = [name for name in classifiers if revisions.get(name) != revision_of(CLASSIFIERS[name])]
    labels = ground.data.train_source.labels
    for name in missing:
        accuracy = classified_accuracy(name, ground.features, labels, cell["indices"], ground.image, seed)
        revisions[name] = revision_of(CLASSIFIERS[name])
        cell |= {f"{name}_accuracy": accuracy, "classifiers": revisions}
    if known is None or missing:
        write_json(path, cell)
    return {**cell, "selector": entry.name}


def _chosen(ground: _Ground, entry: Entry, budget: int, seed: int, about: dict[str, Any]) -> Cell:
    """The choice and its figures."""
    start = time.perf_counter()
    chosen = _choose(ground, entry, budget, seed)
    seconds = round(time.perf_counter() - start, 3)
    labels, features = ground.data.train_source.labels, ground.features
    quality = label_quality(labels, chosen, features, num_classes=len(ground.image.classes))
    return {
        "selector": entry.name, "budget": budget, "seed": seed, "seconds": seconds, **quality,
        "indices": chosen.tolist(), "about": about,
    }  # fmt: skip


def _read(path: Path) -> Cell | None:
    try:
        cell: Cell = read_json(path, "delete it, and it is made again")
    except FileNotFoundError:
        return None
    return cell


def _choose(ground: _Ground, entry: Entry, budget: int, seed: int) -> Tensor:
    """int64 [budget] on the CPU, from the common features unless the selector brings what it chooses from."""
    model = build_selector(entry, ground.image, budget, entry.name)
    if entry.own_features or not model.needs_network:
        ground.data.seed = seed
        return choose(_trainer(), model, ground.data).indices
    if model.seeded:
        return model.choose(ground.features, seed).cpu()
    question = (entry.class_path, digest(entry.options), budget)
    return once(lambda: model.choose(ground.features, seed).cpu(), ground.features, *question)


# tables --------------------------------------------------------------------------------------------------


def summarise(cells: Iterable[Cell], more: Iterable[str] = ()) -> list[dict[str, Any]]:
    """For each selector and budget the mean, least and most of every figure over the seeds; None where not told."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["selector"], cell["budget"]), []).append(cell)
    rows = []
    for (selector, budget), group in groups.items():
        row: dict[str, Any] = {"selector": selector, "budget": budget, "seeds": len(group)}
        for figure in (*FIGURES, *more, "seconds"):
            values = [float(cell[figure]) for cell in group if cell[figure] is not None]
            told = {"mean": sum(values) / len(values), "least": min(values), "most": max(values)} if values else None
            row[figure] = told
        rows.append(row)
    return rows


def tables(summary: list[dict[str, Any]], more: Mapping[str, str] = MappingProxyType({})) -> str:
    """The figures of `SHOWN` as text: a line for each selector, a column for each budget; mean (least-most)."""
    budgets = list(dict.fromkeys(row["budget"] for row in summary))
    parts = []
    for figure, title in {**SHOWN, **more}.items():
        lines = [[title, *(f"{budget} labels" for budget in budgets)]]
        for selector in dict.fromkeys(row["selector"] for row in summary):
            told = {row["budget"]: row[figure] for row in summary if row["selector"] == selector}
            lines.append([selector, *(_told(told[budget], figure) for budget in budgets)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts.append(
            "\n".join(
                "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                for line in lines
            )
        )
    return "\n\n".join(parts)


def _told(value: dict[str, float] | None, figure: str) -> str:
    if value is None:
        return "-"
    if figure == "classes_covered":
        return f"{value['mean']:.1f} ({value['least']:.0f}-{value['most']:.0f})"
    return f"{value['mean']:.3f} ({value['least']:.3f}-{value['most']:.3f})"


def _line(cell: Cell) -> str:
    accuracy = cell["propagated_accuracy"]
    shown = "-" if accuracy is None else f"{accuracy:.4f}"
    return (
        f"{cell['selector']:20} {cell['budget']:6} labels  seed {cell['seed']}  {cell['classes_covered']:4} classes  "
        f"accuracy {shown}  {cell['seconds']:.1f} s"
    )


def _csv(cells: list[Cell], more: Iterable[str] = ()) -> str:
    text = io.StringIO()
    columns = ("selector", "budget", "seed", *FIGURES, *more, "seconds")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**cell, "selector": guarded(cell["selector"])} for cell in cells)
    return text.getvalue()


def draw_comparison(
    summary: list[dict[str, Any]], path: Path, classes: int, more: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a PNG: classes covered and propagated accuracy against the budget, mean and range over the seeds.

    Args:
        summary: of `summarise`.
        path: the file.
        classes: how many there are, the top of the first axis.
        more: further figures, and their titles.
    """
    panels = []
    for figure, title in {**SHOWN, **more}.items():
        curves = []
        for selector in dict.fromkeys(row["selector"] for row in summary):
            told = [(row["budget"], row[figure]) for row in summary if row["selector"] == selector and row[figure]]
            points = [(float(budget), value["mean"], value["least"], value["most"]) for budget, value in sorted(told)]
            curves.append(Curve(selector, points))
        top = float(classes) if figure == "classes_covered" else None
        panels.append(Panel(title, "labels", curves, top=top, log_x=True))
    draw_curves(panels, path)
