"""Which selector to trust on features nobody has seen: how far each is below the best one, on several sets of features.

    OMP_NUM_THREADS=1 python tests/benchmarks/selector_regret.py [--seeds 5] [--selectors NAME ...]

Sets: digits by a short SimCLR; 2,000 images of Fashion-MNIST by a short SimCLR and by ImageNet weights; emoji by two
published networks; the imbalanced emoji; and emoji of which a tenth is there eleven times, beside which every twelfth
image is of another kind and has no answer, so that a label spent on it is lost. Of each, 1, 2, 4 and 10 labels a class,
and three classifiers: the nearest label, logistic regression (C = 30) and label propagation. A cell is a set, a budget
and a classifier; in it counts the mean accuracy over the seeds, on the images that were not chosen. The regret of a
selector is the best mean of the cell less its own.

Checkpoints that are there as digits_simclr/ or fashion_simclr/checkpoints/last.ckpt are taken as they are; the figures
of Fashion-MNIST are of one that own_images.py left (300 steps). Features and runs are kept in
runs/benchmark_selector_regret/, so that a broken benchmark goes on. Tables go to results/selector_regret.json, the plot
to results/selector_regret.png.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from picture_sets import made
from torch import Tensor

from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import permutation
from usl_lightning.features.published import extract_features
from usl_lightning.models.encoder import load_encoder
from usl_lightning.pictures.curves import Curve, Panel, draw_curves
from usl_lightning.selection.activeft import select_activeft
from usl_lightning.selection.as3l import select_as3l
from usl_lightning.selection.coreset import select_coreset
from usl_lightning.selection.density import select_density
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.kmedoids import select_kmedoids
from usl_lightning.selection.maxherding import select_maxherding
from usl_lightning.selection.probcover import select_probcover
from usl_lightning.selection.random import select_random
from usl_lightning.selection.rdss import select_rdss
from usl_lightning.selection.typiclust import select_typiclust
from usl_lightning.selection.usl import select_usl
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.logistic import LogisticLearner
from usl_lightning.vectors.propagation import ALPHAS, balanced, centred, propagate, propagation_graph

RESULTS = Path(__file__).parent / "results" / "selector_regret"
FOLDER = Path("runs/benchmark_selector_regret")
"""Of features and runs that are kept."""
BUDGETS = (1, 2, 4, 10)
"""Labels a class."""

STARTS = 20
DRAWS = 20
"""Of random labels, whose mean is what chance comes to."""
DEFAULT = "k-means, moved"
"""The selector of the chains that `usl init` writes."""

SELECTORS: dict[str, Callable[..., Tensor]] = {
    "k-means, moved": partial(select_kmeans_nearest, restarts=STARTS, move=4.0),
    "k-means": partial(select_kmeans_nearest, restarts=STARTS),
    "k-means, 1 start": select_kmeans_nearest,
    "USL": select_usl,
    "USL, 20 starts": partial(select_usl, kmeans_restarts=STARTS),
    "TypiClust": select_typiclust,
    "k-medoids": select_kmedoids,
    "ProbCover": select_probcover,
    "MaxHerding": select_maxherding,
    "RDSS": select_rdss,
    "ActiveFT": select_activeft,
    "AS3L": select_as3l,
    "Coreset": select_coreset,
    "density": select_density,
    "random": select_random,
}


UNSEEDED = ("MaxHerding", "density")
"""Those that draw nothing: one run is all of them."""


# features ------------------------------------------------------------------------------------------------


def simclr(config: str, folder: Path, *more: str) -> Path:
    """The checkpoint of a short run of SimCLR, trained if need be."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        words = ["fit", "--config", config, "--run_dir", str(folder), *more]
        subprocess.run([sys.executable, "-m", "usl_lightning.cli", *words], check=True)
    return checkpoint


def looked_at(checkpoint: Path, source: ImageSource, rows: Tensor) -> Tensor:
    """Features of some images by a network of our own."""
    encoder = load_encoder(checkpoint)
    with torch.no_grad():
        return torch.cat([encoder(source.read(part)) for part in rows.split(250)])


def pictures(name: str, folder: Path) -> ImageSource:
    """The images to learn from of a set of picture_sets.py."""
    root = made(name, folder / "picture_sets")
    return open_source("folder", "train", dir=str(root), image_size=224, channels=3)


def feature_sets(folder: Path, wanted: list[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, features [n, d] and labels [n] of each set; -1 where an image has no answer."""
    for name, make in SETS.items():
        if wanted and name not in wanted:
            continue
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.npz"
        if not path.exists():
            features, labels = make(folder)
            np.savez(path, features=features.numpy(), labels=labels.numpy())
        kept = np.load(path)
        yield name, torch.from_numpy(kept["features"]), torch.from_numpy(kept["labels"])


def digits(folder: Path) -> tuple[Tensor, Tensor]:
    """Of the images to learn from."""
    source = open_source("digits", "train")
    checkpoint = simclr("digits_simclr.yaml", folder / "digits_simclr")
    return looked_at(checkpoint, source, torch.arange(len(source))), source.labels


def fashion(folder: Path, published: bool) -> tuple[Tensor, Tensor]:
    """Of 2,000 images."""
    source = pictures("fashion", folder)
    some = select_random(len(source), 2_000).sort().values
    if published:
        return extract_features(source, "tf_efficientnet_lite0", keep=True)[some], source.labels[some]
    checkpoint = simclr("fashion_mnist_simclr.yaml", folder / "fashion_simclr", "--trainer.max_steps=400")
    root = str(folder / "picture_sets" / "fashion")
    small = open_source("folder", "train", dir=root, image_size=28, channels=1)
    return looked_at(checkpoint, small, some), source.labels[some]


def emoji(folder: Path, name: str, backbone: str) -> tuple[Tensor, Tensor]:
    """By a published network."""
    source = pictures(name, folder)
    return extract_features(source, backbone, keep=True), source.labels


def messy(folder: Path) -> tuple[Tensor, Tensor]:
    """Emoji, a tenth of which is repeated ten times, and pictures of clothes among them."""
    emojis, labels = emoji(folder, "emoji", "tf_efficientnet_lite0")
    order = permutation(len(emojis), 0, "messy")
    repeated = order[: len(emojis) // 10].repeat(11)
    clothes, _ = fashion(folder, published=True)
    others = clothes[: len(emojis) // 12]
    features = torch.cat([emojis[repeated], emojis[order[len(emojis) // 10 :]], others])
    known = torch.cat([labels[repeated], labels[order[len(emojis) // 10 :]], torch.full((len(others),), -1)])
    return features, known


SETS: dict[str, Callable[[Path], tuple[Tensor, Tensor]]] = {
    "digits, SimCLR": digits,
    "Fashion-MNIST, SimCLR": partial(fashion, published=False),
    "Fashion-MNIST, Lite0": partial(fashion, published=True),
    "emoji, Lite0": partial(emoji, name="emoji", backbone="tf_efficientnet_lite0"),
    "emoji, Lite1": partial(emoji, name="emoji", backbone="tf_efficientnet_lite1"),
    "imbalanced, Lite0": partial(emoji, name="imbalanced", backbone="tf_efficientnet_lite0"),
    "duplicates and outliers, Lite0": messy,
}


# runs ----------------------------------------------------------------------------------------------------


class Judge:
    """Accuracy of three classifiers by the images that were chosen.

    Args:
        features: [n, d].
        labels: int64 [n], -1 where an image has no answer.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.x, self.labels, self.classes = unit_rows(features).float(), labels, int(labels.max()) + 1
        self.graph = propagation_graph(centred(self.x, self.x.mean(0)), 10)

    def __call__(self, rows: Tensor) -> dict[str, float]:
        """Accuracy on all others that have an answer."""
        others = self.labels >= 0
        others[rows] = False
        rows = rows[self.labels[rows] >= 0]
        told = {"nearest": self.nearest(rows), "probe": self.probe(rows), "propagation": self.propagated(rows)}
        return {name: float((each == self.labels)[others].double().mean()) for name, each in told.items()}

    def nearest(self, rows: Tensor) -> Tensor:
        """The label that is most similar."""
        return self.labels[rows][(self.x @ self.x[rows].T).argmax(1)]

    def probe(self, rows: Tensor) -> Tensor:
        """Logistic regression."""
        learner = LogisticLearner(self.x, rows, self.labels[rows], self.classes, [30.0])
        return learner.scores(learner.head(0)).argmax(1)

    def propagated(self, rows: Tensor) -> Tensor:
        """Label propagation; the nearest label where nothing arrives."""
        known = self.labels[rows]
        columns = balanced(known, torch.ones(1, len(rows), dtype=torch.bool), self.classes)[0]
        spread = propagate(self.graph, torch.zeros(len(self.x), self.classes).index_copy_(0, rows, columns), ALPHAS[0])
        spread = spread * self.graph.degrees[:, None].rsqrt()
        return torch.where(spread.amax(1) > 1e-9, spread.argmax(1), self.nearest(rows))


def picks(folder: Path, name: str, x: Tensor, selector: str, budgets: list[int], seeds: int) -> dict[str, list[int]]:
    """What a selector picks of a set, for each budget and seed, from its file or made."""
    path = folder / "picks" / f"{name}-{selector}.json".replace(" ", "_")
    path.parent.mkdir(exist_ok=True)
    known: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
    for budget in budgets:
        for seed in range(seeds):
            of = f"{budget} labels, seed {seed}"
            if of not in known:
                first = known.get(f"{budget} labels, seed 0") if selector in UNSEEDED else None
                known[of] = first or SELECTORS[selector](x, budget, seed=seed).tolist()
                path.write_text(json.dumps(known))
    return known


def runs(folder: Path, seeds: int, names: list[str], sets: list[str]) -> Iterator[dict[str, Any]]:
    """Every run: what was picked, and what it came to."""
    for name, x, labels in feature_sets(folder, sets):
        judge = Judge(x, labels)
        budgets = [per_class * judge.classes for per_class in BUDGETS]
        for selector in names:
            draws = DRAWS if selector == "random" else seeds
            known = picks(folder, name, x, selector, budgets, draws)
            for per_class, budget in zip(BUDGETS, budgets, strict=True):
                for seed in range(draws):
                    about = {"set": name, "per_class": per_class, "seed": seed, "selector": selector}
                    for classifier, accuracy in judge(torch.tensor(known[f"{budget} labels, seed {seed}"])).items():
                        yield {**about, "classifier": classifier, "accuracy": accuracy}
            print(f"{name}: {selector}", flush=True)


# tables --------------------------------------------------------------------------------------------------

Cell = tuple[str, int, str]


def cells(found: list[dict[str, Any]]) -> dict[Cell, dict[str, float]]:
    """Of each set, budget and classifier, the mean accuracy of each selector over the seeds."""
    grouped: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in found:
        grouped[each["set"], each["per_class"], each["classifier"]][each["selector"]].append(each["accuracy"])
    return {cell: {name: statistics.mean(runs) for name, runs in of_each.items()} for cell, of_each in grouped.items()}


def regrets(table: dict[Cell, dict[str, float]], selector: str) -> dict[str, Any]:
    """How far a selector is below the best one of each cell, in points of accuracy."""
    each = {cell: 100 * (max(row.values()) - row[selector]) for cell, row in table.items()}
    worst = max(each, key=lambda cell: each[cell])
    gain = {cell: 100 * (row[selector] - row["random"]) for cell, row in table.items()}
    lowest = min(gain, key=lambda cell: gain[cell])
    return {
        "mean_regret": round(statistics.mean(each.values()), 2),
        "worst_regret": round(each[worst], 2),
        "worst_cell": list(worst),
        "cells_beyond_3": sum(value > 3 for value in each.values()),
        "least_gain_over_random": round(gain[lowest], 2),
        "least_gain_cell": list(lowest),
        "mean_gain_over_random": round(statistics.mean(gain.values()), 2),
        **{
            f"mean_regret_{b}_a_class": round(statistics.mean(v for c, v in each.items() if c[1] == b), 2)
            for b in BUDGETS
        },
    }


def _of_budget(each: dict[Cell, float], per_class: int) -> float:
    return round(statistics.mean(value for cell, value in each.items() if cell[1] == per_class), 2)


def show(summary: dict[str, dict[str, Any]]) -> None:
    """Print the summary, the best first."""
    for name, row in sorted(summary.items(), key=lambda item: float(item[1]["mean_regret"])):
        of_budgets = "  ".join(f"{row[f'mean_regret_{b}_a_class']:6.2f}" for b in BUDGETS)
        print(
            f"{name:24}{row['mean_regret']:7.2f}{row['worst_regret']:8.2f} {row['cells_beyond_3']:4}"
            f"{row['least_gain_over_random']:8.2f}   {of_budgets}   {row['worst_cell']}"
        )


def main() -> None:
    """Run what is missing; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--selectors", nargs="+", default=list(SELECTORS))
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--runs", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    table = cells(list(runs(arguments.runs, arguments.seeds, arguments.selectors, arguments.sets)))
    summary = {name: regrets(table, name) for name in arguments.selectors}
    show(summary)
    rows = [
        {"set": cell[0], "per_class": cell[1], "classifier": cell[2], **{k: round(v, 4) for k, v in row.items()}}
        for cell, row in table.items()
    ]
    about = {"machine": machine(), "seeds": arguments.seeds, "default": DEFAULT, "selectors": summary}
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = json.dumps(about, indent=1).removesuffix("\n}")
    RESULTS.with_suffix(".json").write_text(f'{head},\n "cells": [\n{lines}\n]}}\n')
    if len(table) > len(BUDGETS):
        draw(table, arguments.selectors, RESULTS.with_suffix(".png"))


def draw(table: dict[Cell, dict[str, float]], names: list[str], path: Path) -> None:
    """Mean regret by labels a class, from the least to the most of the cells, a panel for each classifier."""
    panels = []
    for classifier in dict.fromkeys(cell[2] for cell in table):
        curves = []
        for name in names:
            points = []
            for b in BUDGETS:
                each = [100 * (max(row.values()) - row[name]) for c, row in table.items() if c[1:] == (b, classifier)]
                points.append((float(b), statistics.mean(each), min(each), max(each)))
            curves.append(Curve(name, points))
        title = f"{classifier}: points below the best selector"
        panels.append(Panel(title, "labels a class", curves, log_x=True, top=25))
    draw_curves(panels, path)


if __name__ == "__main__":
    main()
