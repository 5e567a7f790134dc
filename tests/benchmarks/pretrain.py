"""What the methods of stage 1 learn, beside raw pixels and a random network.

    python tests/benchmarks/pretrain.py digits|fashion_mnist [--methods simclr moco swav …] [--seeds 0]

For each method and seed runs `usl fit --config <set>_<method>.yaml`, then `usl test`; prints a table and writes
results/pretrain_<set>.json with the machine's description. Figures of methods and seeds that are not run again stay.
Labels reach the figures alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from machine import machine

from usl_lightning.data.modules import ImageData
from usl_lightning.evaluation.features import Features, evaluate_features
from usl_lightning.stage.words import StageCommand

HERE = Path(__file__).parent
K = 20
COLUMNS = {"knn_accuracy": f"kNN k={K}", "probe_1000_accuracy": "probe, 1,000 labels", "probe_accuracy": "probe, all"}


def measure(dataset: str, network: str | None) -> dict[str, Any]:
    """Figures of raw pixels, or of a backbone with random weights."""
    import torch

    from usl_lightning.models.encoder import Encoder

    data = ImageData(dataset)
    sources = [data.source("train"), data.source("test")]
    torch.manual_seed(0)
    encoder = Encoder(network, data.spec).eval() if network else None

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return images.flatten(1) / 255 if encoder is None else encoder(images)

    splits = []
    for source in sources:
        parts = [features(source.read(indices)) for indices in torch.split(torch.arange(len(source)), 512)]
        splits.append(Features(torch.cat(parts), source.labels))
    figures = evaluate_features(*splits, knn_k=K).metrics
    if network is None:
        figures["knn_5_accuracy"] = evaluate_knn(*splits, k=5)
    return figures


def usual_backbone(dataset: str, methods: Iterable[str]) -> str:
    """That of most methods."""
    trees = [StageCommand.parse("fit", [f"--config={dataset}_{method}.yaml"]).tree() for method in methods]
    return Counter(tree["model"]["init_args"]["backbone"] for tree in trees).most_common(1)[0][0]


def evaluate_knn(train: Features, test: Features, k: int) -> float:
    """kNN accuracy alone."""
    from usl_lightning.evaluation.knn import knn_accuracy

    return knn_accuracy(*train, *test, k=k, num_classes=int(train.labels.max()) + 1)


def train(dataset: str, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Figures of one trained network, the time its `usl fit` took, and its kNN accuracy on the way."""
    config, run = f"{dataset}_{method}.yaml", folder / f"{method}_{seed}"
    words = ["--config", config, "--run_dir", str(run), "--seed_everything", str(seed)]
    usl = [sys.executable, "-m", "usl_lightning.cli"]
    start, spent = time.perf_counter(), cpu_seconds()
    subprocess.run([*usl, "fit", *words], check=True)
    seconds, spent = time.perf_counter() - start, cpu_seconds() - spent
    subprocess.run([*usl, "test", *words, "--ckpt_path", "last"], check=True)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert f"k = {K} " in evaluation["notes"]["knn_accuracy"], f"{config}: expected model.knn_k: {K}"
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    curve = [[int(step), float(value)] for step, name, value in rows if name == "knn_accuracy"]
    took = {"seconds": round(seconds, 1), "cpu_seconds": round(spent, 1)}
    return {"seed": seed, **took, "knn_curve": curve, **evaluation["metrics"]}


def cpu_seconds() -> float:
    """Processor time of all commands run so far: what `seconds` would be on one free core."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_table(report: dict[str, Any]) -> None:
    """The figures as text."""
    print(
        f"\n{report['dataset']}\n{'':16}" + "".join(f"{title:>21}" for title in COLUMNS.values()) + f"{'seconds':>10}"
    )
    rows = {"raw pixels": [report["raw_pixels"]], "random network": [report["random_network"]], **report["methods"]}
    for name, figures in rows.items():
        for row in figures:
            cells = "".join(f"{row[key]:21.4f}" if key in row else f"{'-':>21}" for key in COLUMNS)
            print(f"{name:16}{cells}{row.get('seconds', 0) or '-':>10}")
    print(f"raw pixels, kNN k=5: {report['raw_pixels']['knn_5_accuracy']:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", choices=["digits", "fashion_mnist"])
    parser.add_argument("--methods", nargs="+", default=["simclr", "moco", "simsiam", "sela"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    path = HERE / "results" / f"pretrain_{arguments.dataset}.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text())["methods"] if path.exists() else {}
    network = usual_backbone(arguments.dataset, {**known, **dict.fromkeys(arguments.methods)})
    report: dict[str, Any] = {
        "machine": machine(),
        "dataset": arguments.dataset,
        "raw_pixels": measure(arguments.dataset, None),
        "random_network": {"backbone": network, **measure(arguments.dataset, network)},
        "methods": known,
    }
    with tempfile.TemporaryDirectory() as folder:
        for method in arguments.methods:
            rows = {row["seed"]: row for row in report["methods"].get(method, ())}
            for seed in arguments.seeds:
                rows[seed] = train(arguments.dataset, method, seed, Path(folder))
                report["methods"][method] = [rows[each] for each in sorted(rows)]
                path.write_text(json.dumps(report, indent=1) + "\n")
                print_table(report)


if __name__ == "__main__":
    main()
