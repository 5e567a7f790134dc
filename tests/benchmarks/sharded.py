"""A selection from features of which each process has its share: the same picks, and what a process needs.

    python tests/benchmarks/sharded.py [--points 200000] [--processes 1 2 4]

Features of `--points` made points (a thousand clusters of unequal sizes in 128 dimensions), and the pixels of
Fashion-MNIST; k-means with the nearest images and USL, by `usl select --model.sharded true --model.features FILE`. Peak
memory is that of the largest process, all of Python, torch and Lightning in it; beside it stands that of the same
command without shares. Prints a table, and writes results/sharded.json.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ArraySource
from usl_lightning.labels import LabelIndex

RESULT = Path(__file__).parent / "results" / "sharded.json"
METHODS = {"kmeans_nearest": ["--model.budget=100"], "usl": ["--model.budget=100", "--model.k=20"]}


def made(points: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 [points, 128]."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 128)).astype(np.float32)
    of = rng.choice(1000, points, p=rng.dirichlet(np.ones(1000)))
    return centres[of] + 0.7 * rng.normal(size=(points, 128)).astype(np.float32)


def sets(folder: Path, points: int) -> dict[str, int]:
    """Files `NAME.npy` of features and `NAME/train.npy` of as many images; returns how many there are."""
    source = open_source("fashion_mnist", "train")
    assert isinstance(source, ArraySource)
    features = {"made": made(points), "fashion_mnist": source.images.flatten(1).numpy().astype(np.float32) / 255}
    for name, rows in features.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", rows)
        np.save(folder / name / "train.npy", np.zeros((len(rows), 1, 1), np.uint8))
    return {name: len(rows) for name, rows in features.items()}


def select(folder: Path, name: str, method: str, processes: int) -> dict[str, Any]:
    """One selection; 0 processes: one, without shares."""
    out = folder / f"{name}-{method}-{processes}"
    words = ["select", f"--config=digits_{method}.yaml", "--data.dataset=arrays", f"--data.dir={folder / name}"]
    words += [f"--model.features={folder / name}.npy", f"--run_dir={out}", *METHODS[method]]
    words += ["--trainer.accelerator=cpu", f"--trainer.devices={max(1, processes)}"]
    words += ["--model.sharded=true"] if processes else []
    words += ["--trainer.strategy=ddp"] if processes > 1 else []
    program = (
        "import resource,subprocess,sys;c=subprocess.run([sys.executable,'-m','usl_lightning.cli',*sys.argv[1:]]);"
    )
    program += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(c.returncode)"
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    assert told.returncode == 0, told.stderr
    picks = LabelIndex.read(out / "labels.json").indices
    return {
        "picks": hashlib.sha256(np.array(picks).tobytes()).hexdigest()[:16],
        "peak_memory_mib": round(int(told.stdout.split()[-1]) / 1024),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run all, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_sharded"))
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "cells": []}
    print(f"{'features':>14} {'method':>15} {'processes':>9} {'peak MiB':>9} {'seconds':>8}  picks")
    for name, count in sets(arguments.work, arguments.points).items():
        for method in METHODS:
            for processes in (0, *arguments.processes):
                found = select(arguments.work, name, method, processes)
                report["cells"].append(
                    {"features": name, "points": count, "method": method, "processes": processes, **found}
                )
                shown = processes or "whole"
                told = f"{found['peak_memory_mib']:>9} {found['seconds']:>8}  {found['picks']}"
                print(f"{name:>14} {method:>15} {shown:>9} {told}", flush=True)
                RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
