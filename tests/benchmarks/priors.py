"""How good the prior pseudo-labels of few labels are: ways to spread them, features, numbers of labels.

    python tests/benchmarks/priors.py digits --networks simclr=CHECKPOINT simsiam=CHECKPOINT --seeds 0 1 2 3 4
    python tests/benchmarks/priors.py regret      # label propagation and the nearest label, 1 to 10 labels a class

AS3L picks the images, once for each seed; accuracy, calibration error and coverage are of the images without a label.
The networks are those of `usl fit` with the shipped configurations; `pixels` needs none. `regret`: the feature sets of
selector_regret.py, whose folder is used, and the images that `init`'s selector picks. Writes results/priors_<set>.json.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import machine
from selector_regret import BUDGETS, DEFAULT, FOLDER, SELECTORS, feature_sets
from torch import Tensor

from usl_lightning.data.modules import ImageData
from usl_lightning.evaluation.priors import prior_figures
from usl_lightning.features.images import image_features
from usl_lightning.models.encoder import load_encoder
from usl_lightning.selection.as3l import select_as3l
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.priors import Recipe
from usl_lightning.vectors.tightened import tightened

WAYS = {
    "clusters": (Recipe(), 40),
    "clusters, no linear layer": (Recipe(), 0),
    "clusters, over all runs": (Recipe(scaled=False), 40),
    "graph": (Recipe("graph"), 0),
    "nearest": (Recipe("nearest"), 0),
}
"""Name -> recipe and epochs of the linear layer."""


def features_of(name: str, data: ImageData) -> tuple[str, Tensor]:
    """Name of the network, and what it makes of all images."""
    network, _, path = name.partition("=")
    if path:
        return network, image_features(load_encoder(path, "online"), data)
    data.setup("predict")
    return network, torch.cat([batch.images for batch in data.whole_set()]).flatten(1).float()


def figures(features: Tensor, labels: Tensor, budget: int, seed: int) -> dict[str, dict[str, float]]:
    """Of each way."""
    rows = select_as3l(features, budget, seed=seed)
    x = unit_rows(features)
    tuned = tightened(x, budget, seed=seed, clusterings=6, epochs=40, iterations=200)
    classes = int(labels.max()) + 1
    priors = {
        name: recipe.prior(tuned if epochs else x, rows, labels[rows], classes, seed=seed)
        for name, (recipe, epochs) in WAYS.items()
    }
    return {name: prior_figures(prior, rows, labels) for name, prior in priors.items()}


def spread_alone(features: Tensor, labels: Tensor, budget: int, seed: int) -> dict[str, dict[str, float]]:
    """Of the ways that look at no clusters, by labels of `init`'s selector; a pick without an answer gives none."""
    rows = SELECTORS[DEFAULT](features, budget, seed=seed)
    rows, x, classes = rows[labels[rows] >= 0], unit_rows(features), int(labels.max()) + 1
    ways = {name: WAYS[name][0] for name in ("graph", "nearest")}
    return {
        name: prior_figures(recipe.prior(x, rows, labels[rows], classes, seed=seed), rows, labels)
        for name, recipe in ways.items()
    }


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over the seeds of each way, and each accuracy."""
    rows: dict[str, Any] = {}
    for way, keys in runs[0].items():
        rows[way] = {key: round(statistics.mean(run[way][key] for run in runs), 4) for key in keys}
        rows[way]["accuracies"] = [round(run[way]["prior_accuracy"], 4) for run in runs]
    return rows


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and figures of each set of features with each budget."""
    if arguments.dataset == "regret":
        for name, features, labels in feature_sets(FOLDER, []):
            for each in BUDGETS:
                budget = each * (int(labels.max()) + 1)
                runs = [spread_alone(features, labels, budget, seed) for seed in arguments.seeds]
                yield f"{name}, {each} a class", summary(runs)
        return
    data = ImageData(arguments.dataset)
    labels = data.train_source.labels
    for name in arguments.networks:
        with torch.no_grad():
            network, features = features_of(name, data)
        for budget in arguments.budgets:
            runs = [figures(features, labels, budget, seed) for seed in arguments.seeds]
            yield f"{network}, {budget} labels", summary(runs)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--networks", nargs="+", default=["pixels"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    told: dict[str, Any] = {}
    out = Path(__file__).parent / "results" / f"priors_{arguments.dataset}.json"
    for name, rows in cells(arguments):
        for way, row in rows.items():
            print(f"{name:38} {way:26} {row}", flush=True)
        told[name] = rows
        content = {"machine": machine(), "seeds": arguments.seeds, "priors": told}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    gains = [row["graph"]["prior_accuracy"] - row["nearest"]["prior_accuracy"] for row in told.values()]
    print(f"label propagation less the nearest label, mean of {len(gains)}: {100 * statistics.mean(gains):+.1f} points")


if __name__ == "__main__":
    main()
