"""A person's own images, the whole way: `usl init`, `usl run`, accuracy on new images; beside what is simple.

    OMP_NUM_THREADS=1 python tests/benchmarks/own_images.py emoji --budgets 16 32 64 256 --seeds 5
    python tests/benchmarks/own_images.py fashion --budgets 40 --seeds 5

The folders are those of picture_sets.py; a person's answers are the class folders of the images that were picked. With
the features of the published network (ImageNet weights of EfficientNet-Lite0) logistic regression is trained on the
same labels, on those nearest to the centres of one k-means, and on random ones, 20 draws of them; it is scikit-learn's,
with C = 1 on standardised features, or with C = 10 on features as they are, whichever is better on the new images in
the mean: that favours what stands beside. Processor time is that of all processes of `usl run`, without the features of
the images to learn from, which are kept; features of the new images are in it. Finished runs are in
runs/benchmark_own_images/, so that a broken one goes on. Figures go to results/own_images_SET.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from machine import machine
from picture_sets import made
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.opening import open_source
from usl_lightning.features.published import extract_features
from usl_lightning.init.choice import BACKBONE
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.random import select_random

HERE = Path(__file__).parent
DRAWS = 20


def usl(*words: object) -> dict[str, float]:
    """Run a command; seconds of the wall and of all its processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "usl_lightning.cli", *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": round(time.perf_counter() - start, 1), "processor_seconds": round(spent, 1)}


def chain(root: Path, work: Path, words: list[str]) -> tuple[Path, str]:
    """The chain that `init` writes, without its random branch; and what it works on."""
    path = work / "chain.yaml"
    if not path.exists():
        print(usl("init", root, "--output", work / "init.yaml", "--force", *words))
        whole = yaml.safe_load((work / "init.yaml").read_text())
        whole["stages"] = [stage for stage in whole["stages"] if "random" not in stage["name"]]
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
    keys = {key for stage in yaml.safe_load(path.read_text())["stages"] for key in stage.get("set", {})}
    kinds = {(True, True): "both", (True, False): "own", (False, True): "published"}
    return path, kinds["model.init_from" in keys, "model.backbone" in keys and BACKBONE in path.read_text()]


def ours(path: Path, work: Path, budget: int, seed: int) -> dict[str, Any]:
    """One run of the chain, and what it came to."""
    name = f"{budget}-{seed}"
    kept = work / f"{name}.json"
    if not kept.exists():
        words = ["--name", name, "--out", work / "runs", "--seed", seed, f"--select_kmeans.model.budget={budget}"]
        times = usl("run", path, *words)
        summary = json.loads((work / "runs" / name / "summary.json").read_text())
        (result,) = summary["results"]
        index = LabelIndex.read(result["labels"])
        told = {key: result[key] for key in ("test_accuracy", "estimated_accuracy", "estimated_interval", "method")}
        stages = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
        kept.write_text(json.dumps({**times, **told, "stages": stages, "picked": list(index.indices)}))
    return json.loads(kept.read_text())


def beside(x: Tensor, labels: Tensor, new: Tensor, truth: Tensor) -> Callable[[Tensor], tuple[float, float]]:
    """Accuracy on new images of both logistic regressions that learn from some rows."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    kinds = [(1.0, (x - mean) / std, (new - mean) / std), (10.0, x, new)]

    def learned(rows: Tensor) -> tuple[float, float]:
        if len(labels[rows].unique()) < 2:
            return (float((truth == labels[rows[0]]).double().mean()),) * 2
        made = (LogisticRegression(C=c, max_iter=300).fit(a[rows], labels[rows]).score(b, truth) for c, a, b in kinds)
        return tuple(map(float, made))  # type: ignore[return-value]

    return learned


def summed(runs: list[float]) -> dict[str, Any]:
    """Mean, standard deviation, each."""
    deviation = statistics.stdev(runs) if len(runs) > 1 else 0.0
    return {"mean": round(statistics.mean(runs), 4), "sd": round(deviation, 4), "each": [round(r, 4) for r in runs]}


def best(runs: list[tuple[float, float]]) -> dict[str, Any]:
    """Of the kind of regression that is better in the mean."""
    return summed([float(run[int(np.argmax(np.mean(runs, axis=0)))]) for run in runs])


def one_start(x: Tensor, budget: int, seed: int) -> Tensor:
    """The rows nearest to the centres of scikit-learn's k-means, as somebody would write it."""
    from sklearn.cluster import KMeans

    centres = KMeans(budget, n_init=1, random_state=seed).fit(x.numpy()).cluster_centers_
    return torch.cdist(torch.from_numpy(centres).float(), x).argmin(1).unique()


def figures(
    name: str, sources: list[FolderSource], budgets: list[int], seeds: int, work: Path, words: list[str]
) -> Any:
    """Everything of a set."""
    path, features = chain(Path(sources[0].root).parent, work, words)
    report: dict[str, Any] = {"machine": machine(), "set": name, "features": features, "budgets": {}}
    report["images"], report["new_images"] = map(len, sources)
    x, new = (extract_features(source, BACKBONE, keep=True) for source in sources)
    learned = beside(x, sources[0].labels, new, sources[1].labels)
    for budget in budgets:
        runs = [ours(path, work, budget, seed) for seed in range(seeds)]
        random = [learned(select_random(len(x), budget, seed=1000 + draw)) for draw in range(DRAWS)]
        report["load_average"] = round(os.getloadavg()[0], 1)  # what else the machine was doing
        report["budgets"][budget] = {
            "init_and_run": summed([run["test_accuracy"] for run in runs]),
            "same_labels_logistic": best([learned(torch.tensor(run["picked"])) for run in runs]),
            "kmeans_labels_logistic": best([learned(one_start(x, budget, seed)) for seed in range(seeds)]),
            "random_labels_logistic": best(random),
            "estimated": [[run["estimated_accuracy"], run["estimated_interval"]] for run in runs],
            "processor_seconds": summed([run["processor_seconds"] for run in runs]),
            "seconds": summed([run["seconds"] for run in runs]),
            "stages": [run["stages"] for run in runs],
        }
        print(budget, {k: v["mean"] for k, v in report["budgets"][budget].items() if isinstance(v, dict)}, flush=True)
        (HERE / "results" / f"own_images_{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> None:
    """Run what is missing; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32, 64, 256])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", type=Path, default=Path("runs/picture_sets"))
    parser.add_argument("--init", nargs="*", default=[], metavar="WORD", help="for usl init, without their --")
    arguments = parser.parse_args()
    work = Path("runs/benchmark_own_images").resolve() / arguments.set
    work.mkdir(parents=True, exist_ok=True)
    root = made(arguments.set, arguments.sets).resolve()
    sources = [open_source("folder", split, dir=str(root), image_size=224, channels=3) for split in ("train", "test")]
    words = [f"--{word}" for word in arguments.init]
    figures(arguments.set, sources, arguments.budgets, arguments.seeds, work, words)


if __name__ == "__main__":
    main()
