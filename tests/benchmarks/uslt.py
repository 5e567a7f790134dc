"""What USL-T makes of the features of stage 1, beside USL on the same features.

    python tests/benchmarks/uslt.py digits --seeds 0 1 2

For each seed: stage 1 (SimCLR), USL-T's training, and both selections with as many labels as there are clusters, by
the shipped configurations. Prints a table, and writes results/uslt_<data set>.json with the machine's description.
Coverage and propagated accuracy of both choices are told in the features of stage 1, where they can be compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).parent
COLUMNS = ("clusters_used", "nmi", "nmi_of_k_means", "usl_t_coverage", "usl_coverage", "usl_t_accuracy", "usl_accuracy")


def usl(*words: str) -> None:
    """One `usl` command, in a process of its own."""
    subprocess.run([sys.executable, "-m", "usl_lightning.cli", *words], check=True)


def run_seed(dataset: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and choose by the shipped configurations; the figures of one seed."""
    first, second = (str(folder / name / "checkpoints" / "last.ckpt") for name in ("simclr", "uslt"))
    same = ("--seed_everything", str(seed))
    usl("fit", "--config", f"{dataset}_simclr.yaml", "--run_dir", str(folder / "simclr"), *same)
    start = ("--model.init_from", first, "--data.neighbors_from", first)
    usl("fit", "--config", f"{dataset}_uslt.yaml", "--run_dir", str(folder / "uslt"), *same, *start)
    for name, checkpoint in (("uslt_select", second), ("usl", first)):
        where = ("--run_dir", str(folder / name), "--model.init_from", checkpoint)
        usl("select", "--config", f"{dataset}_{name}.yaml", *where, *same, *budget(dataset))
    return figures(dataset, seed, folder, first)


def budget(dataset: str) -> tuple[str, str]:
    """As many labels as the shipped training has clusters."""
    return "--model.budget", {"digits": "10", "fashion_mnist": "40"}[dataset]


def figures(dataset: str, seed: int, folder: Path, checkpoint: str) -> dict[str, Any]:
    """The figures of one seed from what its stages have written."""
    import torch

    from usl_lightning.data.modules import ImageData
    from usl_lightning.evaluation.clusters import cluster_metrics
    from usl_lightning.evaluation.label_quality import label_quality
    from usl_lightning.features.images import image_features
    from usl_lightning.labels import LabelIndex
    from usl_lightning.models.encoder import load_encoder
    from usl_lightning.vectors.distances import unit_rows
    from usl_lightning.vectors.kmeans import kmeans

    trained = json.loads((folder / "uslt" / "result.json").read_text())
    count = int(budget(dataset)[1])
    data = ImageData(dataset)
    labels, features = data.train_source.labels, image_features(load_encoder(checkpoint), data)
    clusters, _ = kmeans(unit_rows(features), count, seed=seed)
    row: dict[str, Any] = {
        "seed": seed,
        "clusters_used": trained["clusters"] / count,
        "nmi": trained["nmi"],
        "nmi_of_k_means": cluster_metrics(clusters, labels)["nmi"],
        "smallest": trained["smallest"],
        "largest": trained["largest"],
    }
    for name, stage in (("usl_t", "uslt_select"), ("usl", "usl")):
        index = LabelIndex.read(folder / stage / "labels.json")
        quality = label_quality(labels, torch.tensor(index.indices), features, num_classes=len(index.classes))
        row[f"{name}_coverage"] = quality["classes_covered"] / len(index.classes)
        row[f"{name}_accuracy"] = quality["propagated_accuracy"]
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line for each seed, and their mean."""
    print("\nseed  " + "  ".join(COLUMNS))
    for row in rows:
        print(f"{row['seed']:4}  " + "  ".join(f"{row[name]:{len(name)}.3f}" for name in COLUMNS))
    means = {name: statistics.mean(row[name] for row in rows) for name in COLUMNS}
    print("mean  " + "  ".join(f"{means[name]:{len(name)}.3f}" for name in COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", choices=["digits", "fashion_mnist"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in")
    arguments = parser.parse_args()
    path = HERE / "results" / f"uslt_{arguments.dataset}.json"
    path.parent.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in arguments.seeds:
            folder = (arguments.runs or Path(temporary)) / str(seed)
            rows.append(run_seed(arguments.dataset, seed, folder))
            print_table(rows)
            report = {"machine": machine(), "dataset": arguments.dataset, "seeds": rows}
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
