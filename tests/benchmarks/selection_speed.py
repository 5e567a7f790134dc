"""How long USL takes to choose: neighbours, k-means and the regularised picks, each alone.

    OMP_NUM_THREADS=2 python tests/benchmarks/selection_speed.py [--large] [--scaling] [--device cpu]

The features are real (patches of scikit-learn's photographs, projected to 128 dimensions), resampled with noise
beyond 200,000: `even` noise is as strong in all 128 directions, most of which the features hardly use, so that
neighbours are as hard to tell as they can be; `shaped` noise, the difference of two other patches, leaves them as they
are. By default 50,000 points, k=400, 40 labels, 10 picks; `--large`: ImageNet's 1,281,167 points with
k=20, 2,911 labels and its preset, even noise; `--scaling`: 20,000 to 1,281,167 points at k=20 and 40 labels, `--noise`
of either kind. Every case runs in
a process of its own, whose peak memory has the features and the making of them in it. Prints a table, and writes
selection_speed.json and .png to tests/benchmarks/results/; cases that are not run again keep their figures there.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor

from usl_lightning.compute.device import chunks
from usl_lightning.pictures.curves import Curve, Panel, draw_curves
from usl_lightning.selection.usl import PRESETS, regularized_selection
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.neighbors import nearest_neighbors

DIMENSIONS, PATCH = 128, 8
DISTINCT = 200_000
RESULTS = Path(__file__).parent / "results"
IMAGENET = 1_281_167
SCALING = (20_000, 80_000, 320_000, IMAGENET)


@dataclass(frozen=True)
class Case:
    """One size to time."""

    points: int
    k: int
    labels: int
    preset: str
    noise: str = "even"


def real_features(n: int, noise: str = "even") -> Tensor:
    """Unit rows [n, 128] of n distinct patches; above 200,000 drawn again from those, with a tenth of noise."""
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(0)
    windows = [
        np.lib.stride_tricks.sliding_window_view(scene, (PATCH, PATCH), axis=(0, 1)).reshape(-1, 3 * PATCH**2)
        for scene in load_sample_images().images
    ]
    rows = np.concatenate([w[draw.permutation(len(w))[:100_000]] for w in windows])
    rows = draw.permutation(rows).astype(np.float32) / 255
    rows = (rows - rows.mean(0)) @ draw.normal(size=(rows.shape[1], DIMENSIONS)).astype(np.float32)
    if n <= len(rows):
        return unit_rows(torch.from_numpy(rows[:n]))
    own, one, other = (draw.integers(0, len(rows), n) for _ in range(3))
    features, spread = torch.empty(n, DIMENSIONS), rows.std()
    for start in range(0, n, 100_000):  # memory is measured: nothing twice
        part = slice(start, start + 100_000)
        if noise == "shaped":
            added = (rows[one[part]] - rows[other[part]]) / np.float32(2**0.5)
        else:
            added = draw.standard_normal((len(own[part]), DIMENSIONS), dtype=np.float32) * spread
        features[part] = unit_rows(torch.from_numpy(rows[own[part]] + np.float32(0.1) * added))
    return features


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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    said: list[str] = []
    logging.getLogger("usl_lightning.vectors.kmeans").addFilter(
        lambda record: bool(said.append(record.getMessage())) or True
    )
    x = real_features(case.points, case.noise).to(device)
    preset = PRESETS[case.preset]
    neighbors, search = timed(lambda: nearest_neighbors(x, case.k))
    recall = neighbors.measured_recall
    mean_distance = neighbors.squared_distances.double().mean(1)
    del neighbors
    (labels, centroids), clustering = timed(lambda: kmeans(x, case.labels, iterations=preset.kmeans_iterations))
    inertia = sum(
        float((x[rows] - centroids[labels[rows]]).double().square().sum()) for rows in chunks(len(x), 24 * DIMENSIONS)
    )
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
        **asdict(case),
        "dimensions": DIMENSIONS,
        "neighbours_s": search,
        "recall": round(recall, 4),
        "kmeans_s": clustering,
        "kmeans": said[-1].removeprefix("k-means: "),
        "inertia": round(inertia, 2),
        "picks": preset.iterations,
        "picks_s": picks,
        "total_s": total,
        "us_per_point": round(1e6 * total / case.points, 1),
        "peak_gib": peak_gib(),
        "device": device,
        "machine": machine(),
    }


def alone(case: Case, device: str) -> dict[str, Any]:
    """`measure` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case, device).result()


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Time per point against the number of points, of the cases that differ in nothing else."""
    line = sorted((r for r in results if (r["k"], r["labels"]) == (20, 40)), key=lambda r: r["points"])
    if not line:
        return
    even = [r for r in line if r["noise"] == "even"]
    line = [r for r in line if r["noise"] == "shaped" or r["points"] <= DISTINCT]
    parts = {"neighbours": "neighbours_s", "k-means": "kmeans_s", "picks": "picks_s", "total": "total_s"}
    curves = []
    for name, column in parts.items():
        values = [(r["points"], 1e6 * r[column] / r["points"]) for r in line]
        curves.append(Curve(name, [(float(n), v, v, v) for n, v in values]))
    values = [(r["points"], r["us_per_point"]) for r in even]
    curves.append(Curve("total, even noise", [(float(n), v, v, v) for n, v in values]))
    draw_curves([Panel("microseconds per point (k=20, 40 labels)", "points", curves, log_x=True)], path)


def main() -> None:
    """Time every case, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="1,281,167 points, 2,911 labels")
    parser.add_argument("--scaling", action="store_true", help="20,000 to 1,281,167 points, 40 labels")
    parser.add_argument("--noise", choices=["even", "shaped"], default="shaped", help="of --scaling")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "selection_speed.json")
    arguments = parser.parse_args()
    cases = [Case(IMAGENET, 20, 2_911, "imagenet")] if arguments.large else []
    cases += [
        Case(size, 20, 40, "cifar10", arguments.noise if size > DISTINCT else "even")
        for size in SCALING
        if arguments.scaling
    ]
    known = json.loads(arguments.out.read_text(encoding="utf-8"))["results"] if arguments.out.exists() else []
    results = {(r["points"], r["k"], r["labels"], r["noise"], r["device"]): r for r in known}
    for case in cases or [Case(50_000, 400, 40, "cifar10")]:
        result = alone(case, arguments.device)
        print(json.dumps(result), flush=True)
        results[case.points, case.k, case.labels, case.noise, arguments.device] = result
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"results": [results[key] for key in sorted(results)]}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw([r for r in results.values() if r["device"] == arguments.device], arguments.out.with_suffix(".png"))
    names = ("points", 10), ("k", 4), ("labels", 6), ("noise", 7), ("neighbours", 11), ("recall", 7), ("k-means", 9)
    print("\n" + " ".join(f"{name:>{width}}" for name, width in (*names, ("picks", 8), ("total", 9), ("memory", 8))))
    for r in results.values():
        print(
            f"{r['points']:10,} {r['k']:4} {r['labels']:6,} {r['noise']:>7} {r['neighbours_s']:9.1f} s"
            f" {r['recall']:7.3f} {r['kmeans_s']:7.1f} s {r['picks_s']:6.1f} s {r['total_s']:7.1f} s"
            f" {r['peak_gib']:4.1f} GiB  k-means {r['kmeans']}"
        )


if __name__ == "__main__":
    main()
