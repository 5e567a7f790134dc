"""What a shipped chain reaches beside random labels, for several seeds and numbers of threads.

    python tests/benchmarks/chain.py digits_quickstart --seeds 0 1 2 3 4 --threads 1 2

Runs `usl run` for each, prints a table, and writes results/<chain>.json with the machine's description. Runs are kept
in runs/benchmark_chain/, so that a broken benchmark goes on. For stage 1 it gives the kNN accuracy of the features
beside that of raw pixels. No label of the test images reaches anything but these figures.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).parent


def run_chain(chain: str, seed: int, threads: int, out: Path) -> dict[str, Any]:
    """`summary.json` of one run, with the processor time of all its stages if nothing was there before."""
    name, kept = f"{chain}-{seed}-threads{threads}", out / f"{chain}-{seed}-threads{threads}.json"
    words = ["run", f"{chain}.yaml", "--seed", str(seed), "--name", name, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "USL_CACHE": str(out / name / "cache")}
    before, begun = _processor_seconds(), (out / name).exists()
    subprocess.run([sys.executable, "-m", "usl_lightning.cli", *words], check=True, env=environment)
    if not kept.exists():
        kept.write_text(json.dumps(None if begun else round(_processor_seconds() - before, 1)))
    run: dict[str, Any] = json.loads((out / name / "summary.json").read_text())
    run |= {"threads": threads, "processor_seconds": json.loads(kept.read_text()), "knn_curve": curve(out / name)}
    for part in (*run["results"], *run["stages"]):
        for path in ("labels", "outputs"):
            part.pop(path, None)
    return run


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def curve(run: Path) -> list[list[float]]:
    """[[step, kNN accuracy], …] of stage 1."""
    rows = (run / "pretrain" / "metrics.csv").read_text().splitlines()[1:]
    cells = [row.split(",") for row in rows]
    return [[int(step), float(value)] for step, name, value in cells if name == "knn_accuracy"]


def raw_pixels(dataset: str) -> dict[str, float]:
    """kNN accuracy of the pixels themselves, k = 5 and 20."""
    import torch

    from usl_lightning.data.images.opening import open_source
    from usl_lightning.evaluation.knn import knn_accuracy

    train, test = (open_source(dataset, split) for split in ("train", "test"))
    pixels = [s.read(torch.arange(len(s))).flatten(1).float() for s in (train, test)]
    classes = int(train.labels.max()) + 1
    return {
        f"k={k}": knn_accuracy(pixels[0], train.labels, pixels[1], test.labels, k=k, num_classes=classes)
        for k in (5, 20)
    }


def report_on(chain: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of some seeds, as written to the results file."""
    accuracy: dict[str, Any] = {}
    for name in dict.fromkeys(result["selection"] for run in runs for result in run["results"]):
        rows = [result for run in runs for result in run["results"] if result["selection"] == name]
        values = [row["test_accuracy"] for row in rows]
        covered = [row["classes_covered"] for row in rows]
        about = {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        accuracy[name] = {**about, "seeds": values, "classes_covered": covered}
    return {
        "machine": machine(),
        "chain": chain,
        "seed_and_threads": [[run["seed"], run["threads"]] for run in runs],
        "knn_of_raw_pixels": raw_pixels(next(name for name in ("digits", "fashion_mnist") if chain.startswith(name))),
        "knn_accuracy": [run["stages"][0]["metrics"]["knn_accuracy"] for run in runs],
        "seconds": [run["seconds"] for run in runs],
        "processor_seconds": [run["processor_seconds"] for run in runs],
        "test_accuracy": accuracy,
        "runs": runs,
    }


def print_table(report: dict[str, Any]) -> None:
    """The figures as text."""
    print(f"\n{report['chain']}: stage-1 kNN {report['knn_accuracy']}, raw pixels {report['knn_of_raw_pixels']}")
    print(f"seconds {report['seconds']}, of the processor {report['processor_seconds']}")
    print(f"{'selection':14} {'mean':>6} {'sd':>6}  each run        classes covered")
    for name, row in report["test_accuracy"].items():
        each = " ".join(f"{accuracy:.3f}" for accuracy in row["seeds"])
        print(f"{name:14} {row['mean']:6.3f} {row['sd']:6.3f}  {each}  {row['classes_covered']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("chain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_chain"))
    arguments = parser.parse_args()
    path = HERE / "results" / f"{arguments.chain}.json"
    path.parent.mkdir(exist_ok=True)
    runs: list[dict[str, Any]] = []
    for threads, seed in itertools.product(arguments.threads, arguments.seeds):
        runs.append(run_chain(arguments.chain, seed, threads, arguments.runs))
        report = report_on(arguments.chain, runs)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print_table(report)


if __name__ == "__main__":
    main()
