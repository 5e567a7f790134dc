"""What the stage-3 methods reach from the same few labels chosen by USL.

    python tests/benchmarks/semisup.py digits --budget 20 --seeds 0 1 2
    python tests/benchmarks/semisup.py digits --methods paws cmsf_semi
    python tests/benchmarks/semisup.py fashion_mnist --budget 40 --steps 100 --work DIR   # goes on with what is there

For each seed SimCLR and USL, then each method from that encoder, by the shipped configurations; self-distillation
learns from the fine-tuned network of the same seed. Prints a table and writes results/semisup_<set>.json, where the
rows of other methods stay if they were measured alike. No label of the test images reaches anything but these figures.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guided import stage
from machine import machine

METHODS = ("fixmatch", "flexmatch", "comatch", "mixmatch", "simclrv2", "supervised")


AT_ONCE = ("probe", "propagate", "blend", "ensemble")
"""Those that take no steps."""

Row = dict[str, float]


def run(method: str, place: Path, dataset: str, budget: int, seed: int, steps: int | None) -> Row:
    """Test accuracy, calibration error and seconds of a method and a seed, whose runs are in a folder."""
    always = {"seed_everything": seed}
    stage(place / "pretrain", "fit", f"{dataset}_simclr.yaml", **always)
    always["model__init_from"] = place / "pretrain" / "checkpoints" / "last.ckpt"
    stage(place / "select", "select", f"{dataset}_usl.yaml", model__budget=budget, **always)
    always["data__labels"] = place / "select" / "labels.json"
    if steps is not None and method not in AT_ONCE:
        always["trainer__max_steps"] = steps
    if method == "simclrv2_distill":
        run("simclrv2", place, dataset, budget, seed, steps)
        always["model__teacher_from"] = place / "simclrv2" / "checkpoints" / "last.ckpt"
    figures = stage(place / method, "fit", f"{dataset}_{method}.yaml", **always)
    return {
        "test_accuracy": figures["test_accuracy"],
        "calibration_error": figures["test_calibration_error"],
        "seconds": json.loads((place / method / "stage.json").read_text())["seconds"],
    }


def row(runs: Iterable[Row]) -> dict[str, Any]:
    """The figures of a method over the seeds."""
    found = list(runs)
    mean = statistics.mean(each["test_accuracy"] for each in found)
    return {"mean": mean, **{key: [each[key] for each in found] for key in found[0]}}


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--steps", type=int, help="of each method; default: as configured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="keeps the runs, and goes on with those that are there")
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    out = arguments.json or Path(__file__).parent / "results" / f"semisup_{arguments.dataset}.json"
    about = {"machine": machine(), **{name: getattr(arguments, name) for name in ("budget", "steps", "seeds")}}
    before = json.loads(out.read_text()) if out.exists() else {}
    rows = before["methods"] if {**before, **about} == before else {}
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        for method in arguments.methods:
            how = (arguments.dataset, arguments.budget)
            rows[method] = row(run(method, work / f"seed{n}", *how, n, arguments.steps) for n in arguments.seeds)
            out.write_text(json.dumps({**about, "methods": rows}, indent=1) + "\n")
    print(
        f"\n{arguments.dataset}, {arguments.budget} labels by USL\n"
        f"{'method':18} {'mean':>6}  each seed          calibration error  seconds"
    )
    for method, figures in rows.items():
        each = " ".join(f"{accuracy:.3f}" for accuracy in figures["test_accuracy"])
        error = statistics.mean(figures["calibration_error"])
        print(f"{method:18} {figures['mean']:6.3f}  {each}  {error:17.3f}  {[round(s) for s in figures['seconds']]}")


if __name__ == "__main__":
    main()
