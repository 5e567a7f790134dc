"""How good the prior pseudo-labels of few labels are: ways to spread them, features, numbers of labels.

    python tests/benchmarks/priors.py digits --networks simclr=CHECKPOINT simsiam=CHECKPOINT --seeds 0 1 2 3 4

AS3L picks the images, once for each seed; accuracy, calibration error and coverage are of the images without a label.
The networks are those of `usl fit` with the shipped configurations; `pixels` needs none. Writes
results/priors_<set>.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from machine import machine
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


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--networks", nargs="+", default=["pixels"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    data = ImageData(arguments.dataset)
    labels, told = data.train_source.labels, {}
    for name in arguments.networks:
        with torch.no_grad():
            network, features = features_of(name, data)
        for budget in arguments.budgets:
            runs = [figures(features, labels, budget, seed) for seed in arguments.seeds]
            rows: dict[str, Any] = {}
            for way in WAYS:
                keys = runs[0][way]
                rows[way] = {key: round(statistics.mean(run[way][key] for run in runs), 4) for key in keys}
                rows[way]["accuracies"] = [round(run[way]["prior_accuracy"], 4) for run in runs]
                print(f"{network:8} {budget:3} {way:26} {rows[way]}", flush=True)
            told[f"{network}, {budget} labels"] = rows
            out = Path(__file__).parent / "results" / f"priors_{arguments.dataset}.json"
            out.write_text(
                json.dumps({"machine": machine(), "seeds": arguments.seeds, "priors": told}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
