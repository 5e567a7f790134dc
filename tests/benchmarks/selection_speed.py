"""How long USL takes to choose: neighbours, k-means and the regularised picks, each alone.

    python tests/benchmarks/selection_speed.py [--large] [--sizes 20000 80000 320000] [--device cpu]

The features are real (patches of scikit-learn's photographs, projected to 128 dimensions), resampled with noise
beyond 200,000. By default 50,000 points, k=400, 40 labels, 10 picks; `--large` adds ImageNet's 1,281,167 points
with k=20, 2,911 labels and its preset; `--sizes` adds others at k=20 and 40 labels. Prints a table and writes
tests/benchmarks/results/selection_speed.json.
"""

import argparse
import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor

from usl_lightning.selection.geometry import unit_rows
from usl_lightning.selection.kmeans import kmeans
from usl_lightning.selection.neighbors import nearest_neighbors
from usl_lightning.selection.usl import PRESETS, regularized_selection

DIMENSIONS, PATCH = 128, 8


@dataclass(frozen=True)
class Case:
    """One size to time."""

    points: int
    k: int
    labels: int
    preset: str


def real_features(n: int) -> Tensor:
    """Unit rows [n, 128] of n distinct patches; above 200,000 drawn again from those, with noise."""
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(0)
    windows = [
        np.lib.stride_tricks.sliding_window_view(scene, (PATCH, PATCH), axis=(0, 1)).reshape(-1, 3 * PATCH**2)
        for scene in load_sample_images().images
    ]
    rows = np.concatenate([w[draw.permutation(len(w))[:100_000]] for w in windows])
    rows = draw.permutation(rows).astype(np.float32) / 255
    rows = (rows - rows.mean(0)) @ draw.normal(size=(rows.shape[1], DIMENSIONS)).astype(np.float32)
    if n > len(rows):
        noise = draw.standard_normal((n, DIMENSIONS), dtype=np.float32) * (0.1 * rows.std())
        rows = rows[draw.integers(0, len(rows), n)] + noise
    return unit_rows(torch.from_numpy(rows[:n]))


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the wall time in seconds."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, round(time.perf_counter() - start, 2)


def peak_gib() -> float:
    """The most main memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


def measure(case: Case, device: str) -> dict[str, Any]:
    """Seconds of each part."""
    x = real_features(case.points).to(device)
    preset = PRESETS[case.preset]
    neighbors, search = timed(lambda: nearest_neighbors(x, case.k))
    recall = neighbors.measured_recall
    mean_distance = neighbors.squared_distances.double().mean(1)
    del neighbors
    (labels, _), clustering = timed(lambda: kmeans(x, case.labels, iterations=preset.kmeans_iterations))
    _, picks = timed(
        lambda: regularized_selection(
            x,
            mean_distance,
            labels,
            weight=preset.weight,
            alpha=preset.alpha,
            momentum=preset.momentum,
            iterations=preset.iterations,
            budget=case.labels,
            horizon=preset.horizon,
            nearest=preset.nearest,
            exclude_same_cluster=preset.exclude_same_cluster,
        )
    )
    total = round(search + clustering + picks, 2)
    return {
        "points": case.points,
        "dimensions": DIMENSIONS,
        "k": case.k,
        "labels": case.labels,
        "preset": case.preset,
        "neighbours_s": search,
        "recall": round(recall, 4),
        "kmeans_s": clustering,
        "picks": preset.iterations,
        "picks_s": picks,
        "total_s": total,
        "us_per_point": round(1e6 * total / case.points, 1),
        "peak_gib": peak_gib(),
    }


def main() -> None:
    """Time every case, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="add 1,281,167 points, 2,911 labels")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="more numbers of points")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "selection_speed.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    cases = [Case(50_000, 400, 40, "cifar10")]
    cases += [Case(size, 20, 40, "cifar10") for size in arguments.sizes]
    if arguments.large:
        cases.append(Case(1_281_167, 20, 2_911, "imagenet"))
    results = []
    for case in cases:
        results.append(measure(case, arguments.device))
        print(json.dumps(results[-1]), flush=True)
    names = ("points", 10), ("k", 4), ("labels", 6), ("neighbours", 11), ("recall", 7), ("k-means", 9)
    print("\n" + " ".join(f"{name:>{width}}" for name, width in (*names, ("picks", 8), ("total", 9))))
    for r in results:
        print(
            f"{r['points']:10,} {r['k']:4} {r['labels']:6,} {r['neighbours_s']:9.1f} s {r['recall']:7.3f}"
            f" {r['kmeans_s']:7.1f} s {r['picks_s']:6.1f} s {r['total_s']:7.1f} s"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"device": arguments.device, "machine": machine(), "results": results}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
