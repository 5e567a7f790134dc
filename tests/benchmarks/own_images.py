"""A person's own images, the whole way: `usl init`, `usl run`, accuracy on new images; beside what is simple.

    OMP_NUM_THREADS=1 python tests/benchmarks/own_images.py emoji --budgets 16 32 64 256 --seeds 5
    python tests/benchmarks/own_images.py fashion --budgets 40 --seeds 5 --new 2000 --whole 0

The folders are those of picture_sets.py; a person's answers are the class folders of the images that were picked. With
the features of the published network (ImageNet weights of EfficientNet-Lite0) logistic regression is trained on the
same labels, on those nearest to the centres of one k-means, and on random ones, 20 draws of them; it is scikit-learn's,
with C = 1 on standardised features, or with C = 10 on features as they are, whichever is better on the new images in
the mean: that favours what stands beside.

`init` is run as it is, and of its chain the pretraining, if there is any, for each seed. Selection and classifier are
the chain's own classes with the chain's parameters, on features that are looked at once; `usl run` goes the whole way
for the first seeds (--whole), is timed, and has to come to the same picks. Processor time is that of all processes of
`usl run` without the features of the images to learn from, which are kept; those of the new images are in it.

Each cell is kept in runs/benchmark_own_images/ and in results/own_images_SET.json as soon as it is there, so that a
broken benchmark goes on.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from machine import machine
from picture_sets import made
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.folder_source import FolderSource
from usl_lightning.data.images.opening import open_source
from usl_lightning.evaluation.calibration import expected_error, reliability
from usl_lightning.features.published import extract_features, published_encoder, seen_by
from usl_lightning.init.choice import BACKBONE
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import load_encoder
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.random import select_random
from usl_lightning.semisup.blend import Blend

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


def whole(path: Path, work: Path, budget: int, seed: int) -> dict[str, Any]:
    """One run of the chain by `usl run`, and what it came to."""
    name = f"{budget}-{seed}"
    kept = work / f"whole-{name}.json"
    if not kept.exists():
        words = ["--name", name, "--out", work / "runs", "--seed", seed, f"--select_kmeans.model.budget={budget}"]
        times = usl("run", path, *words)
        summary = json.loads((work / "runs" / name / "summary.json").read_text())
        (result,) = summary["results"]
        index = LabelIndex.read(result["labels"])
        stages = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
        accuracy = result["test_accuracy"]
        kept.write_text(json.dumps({**times, "accuracy": accuracy, "stages": stages, "picked": list(index.indices)}))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


class Features:
    """Those the chain works on, of the images to learn from and of new ones, for each seed.

    Args:
        sources: both.
        path: the chain.
        work: where runs are.
        kind: `own`, `published` or `both`.
        new: how many of the new images, evenly spaced.
    """

    def __init__(self, sources: list[FolderSource], path: Path, work: Path, kind: str, new: int) -> None:
        self.sources, self.path, self.work, self.kind = sources, path, work, kind
        rest = len(sources[1])
        self.rows = torch.arange(min(new, rest)) * rest // min(new, rest)
        self.truth = sources[1].labels[self.rows]
        self.published = extract_features(sources[0], BACKBONE, keep=True), self._published_new()

    def _published_new(self) -> Tensor:
        kept = self.work / f"new-{len(self.rows)}.npz"
        if not kept.exists():
            seen, encoder = seen_by(BACKBONE, self.sources[1]), published_encoder(BACKBONE)
            with torch.inference_mode():
                features = torch.cat([encoder(seen.read(part)) for part in self.rows.split(25)])
            np.savez(kept, features=features.numpy())
        return torch.from_numpy(np.load(kept)["features"])

    def of(self, seed: int) -> tuple[Tensor, Tensor]:
        """Features [n, d], [m, d]; several networks count the same, as in `SideBySide`."""
        if self.kind == "published":
            return self.published
        own = self._own(seed)
        if self.kind == "own":
            return own
        pairs = zip(own, self.published, strict=True)
        return tuple(torch.cat([F.normalize(each, dim=1) for each in pair], 1) for pair in pairs)  # type: ignore[return-value]

    def _own(self, seed: int) -> tuple[Tensor, Tensor]:
        name = f"pretrained-{seed}"
        words = ["--name", name, "--out", self.work / "runs", "--seed", seed, "--only", "pretrain"]
        if not (self.work / f"{name}.json").exists():
            (self.work / f"{name}.json").write_text(json.dumps(usl("run", self.path, *words)))
        encoder = load_encoder(self.work / "runs" / name / "pretrain" / "checkpoints" / "last.ckpt")
        found = []
        for source, rows in zip(self.sources, (torch.arange(len(self.sources[0])), self.rows), strict=True):
            image = encoder.image
            opened = open_source(
                "folder",
                source.split,
                dir=str(Path(self.sources[0].root).parent),
                image_size=image.height,
                channels=image.channels,
            )
            with torch.inference_mode():
                found.append(torch.cat([encoder(opened.read(part)).float() for part in rows.split(250)]))
        return found[0], found[1]


def ours(path: Path, features: tuple[Tensor, Tensor], data: "Features", budget: int, seed: int) -> dict[str, Any]:
    """Selection and classifier of the chain, on features that are there."""
    parameters = {
        key: value for stage in yaml.safe_load(path.read_text())["stages"] for key, value in stage["set"].items()
    }
    start = time.process_time()
    restarts, move = parameters["model.restarts"], parameters["model.move"]
    rows = select_kmeans_nearest(features[0], budget, seed=seed, restarts=restarts, move=move)
    classes = tuple(data.sources[0].classes)
    model = Blend(image=ImageSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3, classes), features="at hand")
    labels = data.sources[0].labels
    if len(labels[rows].unique()) < 2:
        raise SystemExit(f"{budget} labels, seed {seed}: all of one class")
    model.learn_from(features[0], rows, labels[rows], seed=seed)
    with torch.inference_mode():
        told = model.votes(F.normalize(features[1].float(), dim=1)).softmax(1)
    judgement = model.judgement
    assert judgement is not None
    estimate, right = judgement.estimate, (told.argmax(1) == data.truth).double()
    everything = torch.ones(1, len(told), dtype=torch.bool)
    return {
        "accuracy": float(right.mean()),
        "estimate": None if estimate is None else [estimate.accuracy, estimate.low, estimate.high],
        "calibration_error": expected_error(reliability(told[None], data.truth, everything)),
        "processor_seconds": round(time.process_time() - start, 1),
        "picked": rows.tolist(),
    }


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


def of_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What selection and classifier of the chain came to."""
    told = [run["estimate"] for run in runs if run["estimate"] is not None]
    inside = [one[1] <= run["accuracy"] <= one[2] for run in runs if (one := run["estimate"]) is not None]
    return {
        "init_and_run": summed([run["accuracy"] for run in runs]),
        "estimated": [[round(each, 4) for each in one] for one in told],
        "interval_holds": None if not inside else statistics.mean(inside),
        "calibration_error": summed([run["calibration_error"] for run in runs]),
        "select_and_learn_processor_seconds": summed([run["processor_seconds"] for run in runs]),
    }


def cell(path: Path, data: Features, budget: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything of a budget, as far as it is there: after each seed, and after what stands beside."""
    kept = data.work / f"ours-{budget}.json"
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for seed in range(len(runs), options.seeds):
        runs.append(ours(path, data.of(seed), data, budget, seed))
        kept.write_text(json.dumps(runs))
        print(budget, seed, runs[-1]["accuracy"], runs[-1]["estimate"], flush=True)
        yield of_runs(runs)
    runs = runs[: options.seeds]
    found = of_runs(runs)
    yield found
    for seed in range(options.whole):
        one = whole(path, data.work, budget, seed)
        told = {key: one[key] for key in ("accuracy", "processor_seconds", "seconds", "stages")}
        found.setdefault("by_usl_run", []).append({**told, "same_picks": one["picked"] == runs[seed]["picked"]})
    if not options.alone:
        x, new = data.published
        labels, n = data.sources[0].labels, len(data.sources[0])
        learned = beside(x, labels, new, data.truth)
        found["same_labels_logistic"] = best([learned(torch.tensor(run["picked"])) for run in runs])
        found["random_labels_logistic"] = best(
            [learned(select_random(n, budget, seed=1000 + draw)) for draw in range(DRAWS)]
        )
        yield found
        found["kmeans_labels_logistic"] = best([learned(one_start(x, budget, seed)) for seed in range(options.seeds)])
    yield found


def main() -> None:
    """Run what is missing; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32, 64, 256])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--whole", type=int, default=1, help="seeds that `usl run` goes the whole way for")
    parser.add_argument("--alone", action="store_true", help="without what stands beside")
    parser.add_argument("--new", type=int, default=100_000, help="new images, evenly spaced ones of all")
    parser.add_argument("--sets", type=Path, default=Path("runs/picture_sets"))
    parser.add_argument("--init", nargs="*", default=[], metavar="WORD", help="for usl init, without their --")
    arguments = parser.parse_args()
    work = Path("runs/benchmark_own_images").resolve() / arguments.set
    work.mkdir(parents=True, exist_ok=True)
    root = made(arguments.set, arguments.sets).resolve()
    sources = [open_source("folder", split, dir=str(root), image_size=224, channels=3) for split in ("train", "test")]
    path, kind = chain(root, work, [f"--{word}" for word in arguments.init])
    data = Features(sources, path, work, kind, arguments.new)
    result = HERE / "results" / f"own_images_{arguments.set}.json"
    report: dict[str, Any] = {"machine": machine(), "set": arguments.set, "features": kind, "images": len(sources[0])}
    report |= {"new_images": len(data.truth), "budgets": {}}
    for budget in arguments.budgets:
        for found in cell(path, data, budget, arguments):
            report["budgets"][budget] = found
            result.write_text(json.dumps(report, indent=1) + "\n")
        print(budget, {k: v["mean"] for k, v in found.items() if isinstance(v, dict)}, flush=True)


if __name__ == "__main__":
    main()
