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


def run(path: Path, seed: int, out: Path) -> dict[str, dict[str, float]]:
    """Test accuracy, calibration error and seconds of each method."""
    command = [sys.executable, "-m", "usl_lightning.cli", "run", str(path), "--seed", str(seed)]
    subprocess.run([*command, "--name", f"seed{seed}", "--out", str(out)], check=True)
    summary = json.loads((out / f"seed{seed}" / "summary.json").read_text())
    stages = {stage["name"].removeprefix("train_"): stage for stage in summary["stages"]}
    return {
        name: {
            "test_accuracy": stage["metrics"]["test_accuracy"],
            "calibration_error": stage["metrics"]["test_calibration_error"],
            "seconds": stage["seconds"],
        }
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
    out = Path(__file__).parent / "results" / f"semisup_{arguments.dataset}.json"
    about = {"machine": machine(), **{name: getattr(arguments, name) for name in ("budget", "steps", "seeds")}}
    before = json.loads(out.read_text()) if out.exists() else {}
    kept = before["methods"] if {**before, **about} == before else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "methods.yaml"
        path.write_text(yaml.safe_dump(chain(arguments.dataset, arguments.budget, arguments.methods, arguments.steps)))
        runs = [run(path, seed, Path(folder)) for seed in arguments.seeds]
    rows = {
        method: {
            "mean": statistics.mean(one[method]["test_accuracy"] for one in runs),
            **{key: [one[method][key] for one in runs] for key in ("test_accuracy", "calibration_error", "seconds")},
        }
        for method in arguments.methods
    }
    out.write_text(json.dumps({**about, "methods": {**kept, **rows}}, indent=1) + "\n")
    print(
        f"\n{arguments.dataset}, {arguments.budget} labels by USL\n"
        f"{'method':18} {'mean':>6}  each seed          calibration error  seconds"
    )
    for method, row in rows.items():
        each = " ".join(f"{accuracy:.3f}" for accuracy in row["test_accuracy"])
        error = statistics.mean(row["calibration_error"])
        print(f"{method:18} {row['mean']:6.3f}  {each}  {error:17.3f}  {[round(s) for s in row['seconds']]}")


if __name__ == "__main__":
    main()
