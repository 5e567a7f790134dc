"""What came of a chain: `summary.json`, its picture, and the table that `usl run` ends with. Imports nothing heavy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usl_lightning.chain.file import Stage
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.captions import redraw_captions

if TYPE_CHECKING:
    from usl_lightning.chain.options import RunOptions


OPTIONAL = (5, 6, 7)
"""Columns of `table` that are left out where no row has anything in them."""


def summarise(run: RunOptions) -> dict[str, Any]:
    """What `summary.json` holds; see the documentation of the chain's files."""
    stages, results = [], []
    for stage in run.chain.stages:
        folder = run.folder(stage.name)
        record = folder.record() or {}
        metrics = record.get("metrics", {})
        stages.append(
            {
                "name": stage.name,
                "command": stage.command,
                "seconds": record.get("seconds"),
                "metrics": metrics,
                "outputs": record.get("outputs", {}),
            }
        )
        if stage.command == "fit" and "data.labels" in stage.set:
            results.append(_branch(run, stage, record))
    return {
        "run": run.name,
        "seed": run.seed,
        "seconds": round(sum(stage["seconds"] or 0 for stage in stages), 1),
        "stages": stages,
        "results": results,
    }


def _branch(run: RunOptions, stage: Stage, record: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of `results`: a classifier, and the selection it was trained on."""
    path = run.resolve(str(stage.set["data.labels"]))
    index = LabelIndex.read(path)
    counts = [index.labels.count(label) for label in range(len(index.classes))]
    method = str(record.get("identity", {}).get("model.class_path", "")).rpartition(".")[2].lower()
    return {
        "selection": index.method.get("name", Path(path).stem), "method": method,
        "budget": sum(label is not None for label in index.labels) or len(index.indices),  # without: the data set's own
        "classes_covered": sum(count > 0 for count in counts), "class_counts": counts,
        "test_accuracy": record.get("metrics", {}).get("test_accuracy"), "labels": path,
        "test_accuracy_median": record.get("metrics", {}).get("test_accuracy_median"),
        "estimated_accuracy": record.get("metrics", {}).get("estimated_accuracy"),
        "estimated_interval": record.get("metrics", {}).get("estimated_interval"),
        "estimated_with_40_more": record.get("metrics", {}).get("estimated_with_40_more"),
        "seconds": record.get("seconds"), **_new(run, path, index),
    }  # fmt: skip


def _new(run: RunOptions, path: str, index: LabelIndex) -> dict[str, Any]:
    """What a selection added to the images that it kept of an earlier one, with their classes; if it kept any."""
    for stage in run.chain.stages:
        if "model.keep_from" in stage.set and Path(path) == run.folder(stage.name).labels:
            kept = set(LabelIndex.read(run.resolve(str(stage.set["model.keep_from"]))).indices)
            new = [label for i, label in zip(index.indices, index.labels, strict=True) if i not in kept]
            return {"added": len(new), "added_class_counts": [new.count(c) for c in range(len(index.classes))]}
    return {}


def draw_summary(run: RunOptions, summary: Mapping[str, Any]) -> None:
    """Write `summary.png`, if every branch's selection left its picture."""
    strips = [Path(result["labels"]).with_name("chosen.png") for result in summary["results"]]
    if strips:
        from usl_lightning.pictures.gallery import summary_picture

        for result in summary["results"]:  # people may have labelled them since they were chosen
            redraw_captions(Path(result["labels"]), LabelIndex.read(result["labels"]))
        summary_picture(summary["results"], strips, run.out / run.name / "summary.png")


def table(summary: Mapping[str, Any]) -> str:
    """The results as text."""
    rows: list[tuple[str, ...]] = [
        (
            "selection",
            "labels",
            "classes covered",
            "method",
            "test accuracy",
            "median of last",
            "added",
            "estimated accuracy",
            "seconds",
        )
    ]
    for result in summary["results"]:
        counts = result["class_counts"]  # empty if the label file names no classes
        covered = f"{result['classes_covered']} of {len(counts)}" if counts else "-"
        accuracy = result["test_accuracy"]
        rows.append(
            (
                result["selection"],
                str(result["budget"]),
                covered,
                result["method"],
                _share(accuracy),
                _share(result.get("test_accuracy_median")),
                _added(result),
                _estimate(result),
                str(result["seconds"]),
            )
        )
    told = [i for i in range(len(rows[0])) if i not in OPTIONAL or any(row[i] != "-" for row in rows[1:])]
    rows = [tuple(row[i] for i in told) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def what_next(run: RunOptions, summary: Mapping[str, Any]) -> str:
    """What a finished run is for."""
    folder = shlex.quote(str(run.out / run.name))
    look = f"usl report {folder} shows it"
    return f"{look}; usl predict {folder} FOLDER classifies other images" if summary["results"] else look


def estimates(summary: Mapping[str, Any]) -> list[str]:
    """What the estimates of the table are, and what more labels would bring where that can be told."""
    results = summary["results"]
    if all(_estimate(each) == "-" for each in results):
        return []
    told = [each.get("estimated_with_40_more") for each in results]
    whose = [f" ({each['selection']}, {each['method']})" if len(results) > 1 else "" for each in results]
    after = [f"{value:.2f}{name}" for value, name in zip(told, whose, strict=True) if value is not None]
    more = f"; with 40 labels more about {', '.join(after)}" if after else ""
    return [f"estimated accuracy: by the labels alone, with a 90% interval{more}"]


def _added(result: Mapping[str, Any]) -> str:
    """`40 of 7 classes`: what a round has added."""
    if "added" not in result:
        return "-"
    classes = sum(count > 0 for count in result["added_class_counts"])
    return f"{result['added']} of {classes} class{'es' if classes != 1 else ''}" if classes else str(result["added"])


def _estimate(result: Mapping[str, Any]) -> str:
    """`0.87 (0.81-0.92)`, or what there is of it."""
    accuracy, interval = result.get("estimated_accuracy"), result.get("estimated_interval")
    if accuracy is None or interval is None:
        return "-"
    return f"{accuracy:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"
