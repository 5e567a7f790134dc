"""Classifiers of few labels beside the one that `usl init` writes, Blend: an ensemble over networks, and an adapter.

    OMP_NUM_THREADS=1 python tests/benchmarks/few_label.py emoji --budgets 16 32 64 256 --seeds 5
    OMP_NUM_THREADS=1 python tests/benchmarks/few_label.py fashion --budgets 40 --seeds 3 --new 2000
    OMP_NUM_THREADS=1 python tests/benchmarks/few_label.py emoji --budgets 64 256 --seeds 0 --adapters 1 --steps 40

The folders are those of picture_sets.py, the labels those of k-means on the features that `init` chooses, as in
own_images.py, which also says what these are: on emoji those of EfficientNet-Lite0, on Fashion-MNIST these and SimCLR's
beside them. On emoji the ensemble's networks are EfficientNet-Lite0 to 2, whose features Blend gets side by side, too;
on Fashion-MNIST those two. An adapter is `usl fit --config folder_adapter.yaml` with the same labels, for so few
steps that it ends on a CPU. Accuracy is that on new images, time that of all processors, without features.

Each run is kept in runs/benchmark_own_images/, and results/few_label_SET.json has each figure as soon as it is there,
so that a broken benchmark goes on, and one with more seeds repeats nothing.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from own_images import Features, chain, summed, usl
from picture_sets import made
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.features.published import extract_features
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.semisup.blend import Blend
from usl_lightning.semisup.ensemble import Ensemble
from usl_lightning.semisup.few_labels import FewLabels

HERE = Path(__file__).parent
MORE = ("tf_efficientnet_lite1", "tf_efficientnet_lite2")

Parts = list[tuple[Tensor, Tensor]]
"""Features of each network, of the images to learn from and of new ones."""


class OfParts(Ensemble):
    """An ensemble on features that are at hand."""

    parts: Parts

    def widths(self, together: int) -> list[int]:
        """Of each network."""
        return [old.shape[1] for old, _ in self.parts]


def learned(model: FewLabels, parts: Parts, rows: Tensor, labels: Tensor, truth: Tensor, seed: int) -> dict[str, Any]:
    """Accuracy, estimate and processor time."""
    start = time.process_time()
    old, new = (torch.cat([F.normalize(pair[i].float(), dim=1) for pair in parts], 1) for i in range(2))
    model.learn_from(old, rows, labels[rows], seed=seed)
    with torch.inference_mode():
        told = model.votes(F.normalize(new, dim=1))
    assert model.judgement is not None
    estimate = model.judgement.estimate
    return {
        "accuracy": float((told.argmax(1) == truth).double().mean()),
        "estimate": None if estimate is None else [estimate.accuracy, estimate.low, estimate.high],
        "processor_seconds": round(time.process_time() - start, 1),
    }


def several(data: Features, seed: int, name: str) -> Parts:
    """Features of each network that the ensemble is over."""
    if name != "emoji":
        return [data._own(seed), data.published]
    others = [tuple(extract_features(source, each, keep=True) for source in data.sources) for each in MORE]
    return [data.published, *((old, new[data.rows]) for old, new in others)]


def adapter(data: Features, root: Path, rows: Tensor, budget: int, seed: int, tuned: str, steps: int) -> dict[str, Any]:
    """A run of `usl fit`."""
    run_dir, source = data.work / f"adapter-{tuned}-{budget}-{seed}-{steps}", data.sources[0]
    index = data.work / f"labels-{budget}-{seed}.json"
    labels = tuple(source.labels[rows].tolist())
    picked = LabelIndex(dataset_id(source), {"name": "kmeans_nearest"}, tuple(rows.tolist()), labels, source.classes)
    picked.write(index)
    words = ["--config", "folder_adapter.yaml", "--data.dir", root, "--data.labels", index, "--run_dir", run_dir]
    words += [f"--model.tuned={tuned}", f"--trainer.max_steps={steps}", "--seed_everything", seed]
    words += ["--data.eval_batch_size", 32]
    times = usl("fit", *words)
    return {"accuracy": json.loads((run_dir / "result.json").read_text())["test_accuracy"], **times}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is in a file, made and written if it is not there."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one classifier at one budget."""
    told = [run["estimate"] for run in runs if run.get("estimate")]
    inside = [run["estimate"][1] <= run["accuracy"] <= run["estimate"][2] for run in runs if run.get("estimate")]
    estimates = {"estimates": [[round(x, 4) for x in each] for each in told], "interval_holds": sum(inside)}
    return {
        **summed([run["accuracy"] for run in runs]),
        **(estimates if told else {}),
        "processor_seconds": summed([run["processor_seconds"] for run in runs])["mean"],
    }


def main() -> None:
    """Measure; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["emoji", "fashion"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32, 64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--adapters", type=int, default=0, help="seeds of the adapters")
    parser.add_argument("--tuned", nargs="+", default=["low_rank"])
    parser.add_argument("--steps", type=int, default=40, help="of an adapter")
    parser.add_argument("--new", type=int, default=100_000, help="new images, evenly spaced ones of all")
    parser.add_argument("--sets", type=Path, default=Path("runs/picture_sets"))
    options = parser.parse_args()
    work = Path("runs/benchmark_own_images").resolve() / options.set
    work.mkdir(parents=True, exist_ok=True)
    root = made(options.set, options.sets).resolve()
    sources = [open_source("folder", split, dir=str(root), image_size=224, channels=3) for split in ("train", "test")]
    path, kind = chain(root, work, [])
    data = Features(sources, path, work, kind, options.new)
    labels, classes = sources[0].labels, tuple(sources[0].classes)
    spec = ImageSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3, classes)
    result = HERE / "results" / f"few_label_{options.set}.json"
    report: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"budgets": {}}
    report |= {"machine": machine(), "set": options.set, "features": kind, "new_images": len(data.truth)}

    def keep(budget: int, name: str, runs: list[dict[str, Any]]) -> None:
        report["budgets"].setdefault(str(budget), {})[name] = found = summary(runs)
        result.write_text(json.dumps(report, indent=1) + "\n")
        print(budget, name, found["mean"], found["each"], found["processor_seconds"], flush=True)

    for budget in options.budgets:
        runs: dict[str, list[dict[str, Any]]] = {}
        for seed in range(max(options.seeds, options.adapters)):
            whole = data.of(seed)
            rows = select_kmeans_nearest(whole[0], budget, seed=seed, restarts=20)
            if seed < options.seeds:
                parts = several(data, seed, options.set)
                ensemble = OfParts(image=spec, features="at hand")
                ensemble.parts = parts
                given = {"blend": ([whole], Blend(image=spec, features="at hand")), "ensemble": (parts, ensemble)}
                if options.set == "emoji":
                    given["blend, all networks"] = parts, Blend(image=spec, features="at hand")
                for name, (features, model) in given.items():
                    make = partial(learned, model, features, rows, labels, data.truth, seed)
                    runs.setdefault(name, []).append(kept(work / f"few-{name}-{budget}-{seed}.json", make))
                    keep(budget, name, runs[name])
            for tuned in options.tuned if seed < options.adapters else ():
                name = f"adapter, {tuned}, {options.steps} steps"
                make = partial(adapter, data, root, rows, budget, seed, tuned, options.steps)
                runs.setdefault(name, []).append(kept(work / f"few-{name}-{budget}-{seed}.json", make))
                keep(budget, name, runs[name])


if __name__ == "__main__":
    main()
