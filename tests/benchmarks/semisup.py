"""What the stage-3 methods reach from the same few labels chosen by USL.

    python tests/benchmarks/semisup.py digits --budget 20 --seeds 0 1 2
    python tests/benchmarks/semisup.py digits --methods paws cmsf_semi
    python tests/benchmarks/semisup.py fashion_mnist --budget 40 --steps 300 --seeds 0 1 2

For each seed a chain: SimCLR, USL, then each method from that encoder, by the shipped configurations. Prints a table
and writes results/semisup_<set>.json, where the rows of other methods stay if they were measured alike. No label of the
test images reaches anything but these figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from machine import machine

METHODS = ("fixmatch", "flexmatch", "comatch", "mixmatch", "simclrv2", "supervised")


def chain(dataset: str, budget: int, methods: list[str], steps: int | None) -> dict[str, Any]:
    """The chain as `usl run` reads it."""
    start = {"model.init_from": "${pretrain.checkpoint}"}
    stages: list[dict[str, Any]] = [
        {"name": "pretrain", "command": "fit", "config": f"{dataset}_simclr.yaml"},
        {"name": "select_usl", "command": "select", "config": f"{dataset}_usl.yaml"}
        | {"set": {**start, "model.budget": budget}},
    ]
    length = {} if steps is None else {"trainer.max_steps": steps}
    for method in methods:
        settings = {**start, "data.labels": "${select_usl.labels}", **length}
        stages.append(
            {"name": f"train_{method}", "command": "fit", "config": f"{dataset}_{method}.yaml", "set": settings}
        )
    return {"seed": 0, "stages": stages}


def run(path: Path, seed: int, out: Path) -> dict[str, tuple[float, float]]:
    """Test accuracy and seconds of each method."""
    command = [sys.executable, "-m", "usl_lightning.cli", "run", str(path), "--seed", str(seed)]
    subprocess.run([*command, "--name", f"seed{seed}", "--out", str(out)], check=True)
    summary = json.loads((out / f"seed{seed}" / "summary.json").read_text())
    stages = {stage["name"].removeprefix("train_"): stage for stage in summary["stages"]}
    return {
        name: (stage["metrics"]["test_accuracy"], stage["seconds"])
        for name, stage in stages.items()
        if name not in ("pretrain", "select_usl")
    }


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--steps", type=int, help="of each method; default: as configured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    runs: dict[int, dict[str, tuple[float, float]]] = {}
    out = Path(__file__).parent / "results" / f"semisup_{arguments.dataset}.json"
    about = {"machine": machine(), **{name: getattr(arguments, name) for name in ("budget", "steps", "seeds")}}
    before = json.loads(out.read_text()) if out.exists() else {}
    kept = before["methods"] if {**before, **about} == before else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "methods.yaml"
        path.write_text(yaml.safe_dump(chain(arguments.dataset, arguments.budget, arguments.methods, arguments.steps)))
        for seed in arguments.seeds:
            runs[seed] = run(path, seed, Path(folder))
    rows = {
        method: {
            "mean": statistics.mean(one[method][0] for one in runs.values()),
            "test_accuracy": [one[method][0] for one in runs.values()],
            "seconds": [one[method][1] for one in runs.values()],
        }
        for method in arguments.methods
    }
    out.write_text(json.dumps({**about, "methods": {**kept, **rows}}, indent=1) + "\n")
    print(
        f"\n{arguments.dataset}, {arguments.budget} labels by USL\n"
        f"{'method':12} {'mean':>6}  each seed          seconds"
    )
    for method, row in rows.items():
        each = " ".join(f"{accuracy:.3f}" for accuracy in row["test_accuracy"])
        print(f"{method:12} {row['mean']:6.3f}  {each}  {[round(s) for s in row['seconds']]}")


if __name__ == "__main__":
    main()
