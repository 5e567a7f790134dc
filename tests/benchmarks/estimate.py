"""How often the interval about an estimated accuracy holds the truth: classifiers of few labels on features at hand.

    OMP_NUM_THREADS=1 python tests/benchmarks/estimate.py [--seeds 3] [--features NAME=FILE.npz ...]

Sets: digits (pixels, their first 20 principal components, SimCLR's features after a short run) and 5,000 images of
Fashion-MNIST (64 principal components of the pixels); with --features others, files with `features` [n, d] and
`labels` [n]. Of each, budgets of 16 to 256 labels, chosen at random, by k-means and by USL. The truth is the accuracy
on all images that were not chosen. Each run is kept in runs/benchmark_estimate/, so that a broken one goes on. The
tables go to tests/benchmarks/results/estimate.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.evaluation.calibration import expected_error, reliability
from usl_lightning.models.encoder import load_encoder
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.random import select_random
from usl_lightning.selection.usl import select_usl
from usl_lightning.semisup.blend import Blend
from usl_lightning.semisup.few_labels import FewLabels
from usl_lightning.semisup.probe import Probe
from usl_lightning.semisup.propagate import Propagate

RESULTS = Path(__file__).parent / "results" / "estimate.json"
METHODS: dict[str, Callable[..., FewLabels]] = {"probe": Probe, "propagate": Propagate, "blend": Blend}
SELECTORS: dict[str, Callable[..., Tensor]] = {
    "random": select_random, "k-means": select_kmeans_nearest, "usl": select_usl,
}  # fmt: skip
BUDGETS = (16, 32, 64, 256)
FASHION = 5_000


def components(x: Tensor, dimensions: int) -> Tensor:
    """The first principal components of rows [n, d]."""
    centred = x.double() - x.double().mean(0)
    return (centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dimensions]).float()


def simclr(folder: Path) -> Path:
    """The checkpoint of a SimCLR run on digits, trained if need be."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        words = ["fit", "--config", "digits_simclr.yaml", "--run_dir", str(folder)]
        subprocess.run([sys.executable, "-m", "usl_lightning.cli", *words], check=True)
    return checkpoint


def feature_sets(folder: Path, others: list[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, features [n, d] and labels [n] of each set."""
    parts = [open_source("digits", split) for split in ("train", "test")]
    labels = torch.cat([part.labels for part in parts])
    images = torch.cat([part.read(torch.arange(len(part))) for part in parts])
    pixels = images.flatten(1).float()
    yield "digits, pixels", pixels, labels
    yield "digits, 20 components", components(pixels, 20), labels
    encoder = load_encoder(simclr(folder / "simclr"))
    with torch.no_grad():
        yield "digits, SimCLR", torch.cat([encoder(part) for part in images.split(256)]), labels
    fashion = open_source("fashion_mnist", "train")
    some = select_random(len(fashion), FASHION)
    yield "Fashion-MNIST, 64 components", components(fashion.read(some).flatten(1).float(), 64), fashion.labels[some]
    for word in others:
        name, _, path = word.partition("=")
        kept = np.load(path)
        yield name, torch.from_numpy(kept["features"]), torch.from_numpy(kept["labels"]).long()


def run(method: str, x: Tensor, labels: Tensor, rows: Tensor, seed: int) -> dict[str, Any]:
    """What a classifier says of itself, and the truth."""
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    model = METHODS[method](image=ImageSpec(1, 8, 8, (0.5,), (0.5,), classes), features="at hand")
    start = time.perf_counter()
    logits = model.learn_from(x, rows, labels[rows], seed=seed)
    seconds = time.perf_counter() - start
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[rows] = False
    told, judgement = (logits[rest].softmax(1), labels[rest]), model.judgement
    assert judgement is not None
    raw = [head(torch.nn.functional.normalize(x[rest], dim=1)).softmax(1) for head in model.votes.heads]
    everything = torch.ones(1, int(rest.sum()), dtype=torch.bool)
    estimate = judgement.estimate
    return {
        "accuracy": float((told[0].argmax(1) == told[1]).double().mean()),
        "estimate": None if estimate is None else [estimate.accuracy, estimate.low, estimate.high],
        "calibration_error": expected_error(reliability(told[0][None], told[1], everything)),
        "uncalibrated_error": expected_error(reliability(torch.stack(raw).mean(0)[None], told[1], everything)),
        "with_more": judgement.with_more,
        "seconds": round(seconds, 2),
    }


def runs(folder: Path, seeds: int, others: list[str]) -> Iterator[dict[str, Any]]:
    """Every run, from its file or made."""
    for name, x, labels in feature_sets(folder, others):
        for budget in BUDGETS:
            for seed in range(seeds):
                for selector, select in SELECTORS.items():
                    key = f"{name}-{budget}-{seed}-{selector}".replace(" ", "_")
                    path = folder / f"{key}.json"
                    if not path.exists():
                        rows = select(x, budget, seed=seed)
                        made = {method: run(method, x, labels, rows, seed) for method in METHODS}
                        path.write_text(json.dumps(made))
                        print(key, {method: round(each["accuracy"], 3) for method, each in made.items()}, flush=True)
                    about = {"set": name, "budget": budget, "seed": seed, "selector": selector}
                    for method, each in json.loads(path.read_text()).items():
                        yield {**about, "method": method, **each}


def mean(values: list[float]) -> float | None:
    """Rounded; None of none."""
    return round(sum(values) / len(values), 4) if values else None


def figures(group: list[dict[str, Any]]) -> dict[str, Any]:
    """Of some runs: how many, coverage, widths, errors."""
    told = [each for each in group if each["estimate"] is not None]
    widths = [each["estimate"][2] - each["estimate"][1] for each in told]
    binomial = [3.29 * (each["accuracy"] * (1 - each["accuracy"]) / each["budget"]) ** 0.5 for each in told]
    inside = [float(each["estimate"][1] <= each["accuracy"] <= each["estimate"][2]) for each in told]
    return {
        "runs": len(group),
        "told": len(told),
        "accuracy": mean([each["accuracy"] for each in group]),
        "bias": mean([each["estimate"][0] - each["accuracy"] for each in told]),
        "coverage": mean(inside),
        "width": mean(widths),
        "width_of_binomial": round(sum(widths) / sum(binomial), 3) if told else None,
        "calibration_error": mean([each["calibration_error"] for each in group]),
        "uncalibrated_error": mean([each["uncalibrated_error"] for each in group]),
        "seconds": mean([each["seconds"] for each in group]),
    }


def show(title: str, groups: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print a table of `figures` and return it."""
    table = {name: figures(group) for name, group in groups.items()}
    names = list(next(iter(table.values())))
    print(f"\n{title:40}" + "".join(f"{name.replace('_', ' '):>20}" for name in names))
    for name, row in table.items():
        print(f"{name:40}" + "".join(f"{row[key]!s:>20}" for key in names))
    return table


def rounded(value: Any) -> Any:
    """To four places, in lists and mappings too."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Run what is missing, print the tables, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", action="append", default=[], metavar="NAME=FILE.npz")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark_estimate"))
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    found = list(runs(arguments.runs, arguments.seeds, arguments.features))

    def by(*keys: str) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for each in found:
            groups.setdefault(", ".join(str(each[key]) for key in keys), []).append(each)
        return groups

    tables = {
        "all": show("all", {"all": found}),
        "budget": show("budget", by("budget")),
        "selector": show("selector, budget", by("selector", "budget")),
        "method": show("method, budget", by("method", "budget")),
        "set": show("set, budget, method", by("set", "budget", "method")),
    }
    lines = ",\n".join(json.dumps(each) for each in rounded(found))
    head = json.dumps({"machine": machine(), "tables": tables}, indent=1).removesuffix("\n}")
    RESULTS.write_text(f'{head},\n "runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
