"""How many steps FlexMatch needs to get where it ends, with prior pseudo-labels and without.

    python tests/benchmarks/guided.py digits --budgets 10 20 --seeds 0 1 2 3 4
    python tests/benchmarks/guided.py fashion_mnist --budgets 10 40 --work DIR   # goes on with what is in DIR

One network a set (SimCLR's); for each seed AS3L picks the images to label, their labels are spread to all images (`usl
propagate`), and FlexMatch starts from the network: without a prior for all its steps and for a third of them, and with
one likewise. As the paper's baseline does, it also starts from random weights, from the same labels. All is by the
shipped configurations but for --priors and --guide, three unlabelled images for each labelled one, to save time, and a
moving average of about ten steps, as one of a hundred could not follow. Each validates on the test images every few
steps; no label of these reaches anything but these figures. Writes results/guided_<set>.json and, with --picture FILE,
the curves. guided_digits_drop.json, which has no runs without a prior that are as short, is of --guide
'{"prior_steps": 0.5}' --priors '{}'.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine

from usl_lightning.cli import main as usl
from usl_lightning.pictures.curves import Curve, Panel, draw_curves

RESULTS = Path(__file__).parent / "results"

LABELS = {
    "scratch": "FlexMatch from random weights", "plain": "from SimCLR", "short": "from SimCLR, a third of the steps",
    "guided": "as long, guided by a prior", "long": "guided, all the steps",
}  # fmt: skip


def stage(folder: Path, command: str, config: str, **values: Any) -> dict[str, Any]:
    """Run a stage unless it is there already; its figures."""
    if not (folder / "result.json").exists():
        typed = [f"--{key.replace('__', '.')}={value}" for key, value in values.items()]
        usl([command, "--config", config, "--run_dir", str(folder), *typed])
    figures: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return figures


def curve(folder: Path) -> list[tuple[int, float]]:
    """(steps taken, test accuracy of the moving average) of each validation."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    points = {int(step) + 1: float(value) for step, name, value in rows if name == "test_accuracy"}
    return sorted(points.items())


def reached(points: Sequence[tuple[int, float]], goal: float) -> int | None:
    """Steps until an accuracy is reached; None if it is not."""
    return next((step for step, accuracy in points if accuracy >= goal - 1e-6), None)  # the file has eight digits


def told(settings: dict[str, Any]) -> str:
    """Settings as the end of a folder's name."""
    return "".join(f"_{key}={value}" for key, value in settings.items())


def models(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a stage's model, as `stage` takes them."""
    return {f"model__{key}": json.dumps(value) if isinstance(value, bool) else value for key, value in settings.items()}


def compare(
    work: Path, dataset: str, budget: int, seed: int, steps: int, every: int, guide: dict[str, Any], how: dict[str, Any]
) -> dict[str, Any]:
    """One seed: the prior, and the trainings without it and with it."""
    network = {"model__init_from": work / "network" / "checkpoints" / "last.ckpt", "seed_everything": seed}
    place = work / f"{budget}_{seed}"
    stage(place / "select", "select", f"{dataset}_as3l.yaml", model__budget=budget, **network)
    labels = {"data__labels": place / "select" / "labels.json"}
    spread = place / f"priors{told(how)}"
    prior = stage(spread, "propagate", f"{dataset}_priors.yaml", **labels, **network, **models(how))
    common = {**labels, **network, "trainer__val_check_interval": every}
    common |= {"data__unlabelled_ratio": 3, "model__ema_decay": 0.9}
    file = spread / "outputs" / "priors.npz"
    end, guided = f"{told(how)}{told(guide)}", models({"prior_file": file, **guide})
    arms: dict[str, tuple[Path, int, dict[str, Any]]] = {
        "scratch": (place / "scratch", steps, {"model__init_from": "null"}),
        "plain": (place / "plain", steps, {}),
        "short": (place / "short", steps // 3, {}),
        "guided": (place / f"guided{end}", steps // 3, guided),
        "long": (place / f"long{end}", steps, guided),
    }
    figures: dict[str, Any] = {"prior": prior, "curves": {}}
    for name, (folder, length, settings) in arms.items():
        reach = stage(folder, "fit", f"{dataset}_flexmatch.yaml", trainer__max_steps=length, **(common | settings))
        figures[name], figures["curves"][name] = reach["test_accuracy"], curve(folder)
    for goal, word in (("plain", "steps"), ("scratch", "to_scratch")):
        figures |= {f"{word}_{name}": reached(figures["curves"][name], figures[goal]) for name in arms}
    return figures


def draw(runs: dict[int, dict[int, dict[str, Any]]], dataset: str, path: Path) -> None:
    """The mean curves of each number of labels."""
    panels = []
    for budget, of in runs.items():
        curves = []
        for name, label in LABELS.items():
            many = [dict(run["curves"][name]) for run in of.values()]
            values = {step: [each[step] for each in many] for step in many[0]}
            points = [(step, statistics.mean(each), min(each), max(each)) for step, each in values.items()]
            curves.append(Curve(label, points))
        panels.append(Panel(f"{dataset}, {budget} labels: test accuracy", "steps", curves, top=1.0))
    draw_curves(panels, path)


def main() -> None:
    """Run what is missing and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300, help="of FlexMatch without a prior")
    parser.add_argument("--every", type=int, default=10, help="steps between two looks at the test images")
    parser.add_argument("--guide", default='{"prior_steps": 0.25, "prior_after": "update"}', help="settings, as JSON")
    parser.add_argument("--priors", default='{"scaled": false}', help="settings of the prior, as JSON")
    parser.add_argument("--work", type=Path, help="keeps the runs, and goes on with those that are there")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    runs: dict[int, dict[int, dict[str, Any]]] = {budget: {} for budget in arguments.budgets}
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        stage(work / "network", "fit", f"{arguments.dataset}_simclr.yaml")
        for seed in arguments.seeds:
            for budget in arguments.budgets:
                how = json.loads(arguments.guide), json.loads(arguments.priors)
                length = arguments.steps, arguments.every
                runs[budget][seed] = compare(work, arguments.dataset, budget, seed, *length, *how)
                write(arguments, runs)
    if arguments.picture:
        draw(runs, arguments.dataset, arguments.picture)


def write(arguments: argparse.Namespace, runs: dict[int, dict[int, dict[str, Any]]]) -> None:
    """The figures so far, beside those of other numbers of labels that were got in the same way."""
    path = arguments.json or RESULTS / f"guided_{arguments.dataset}.json"
    way = {"steps": arguments.steps, "guide": json.loads(arguments.guide), "priors": json.loads(arguments.priors)}
    old = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: value for name, value in old.items() if "labels" in name and way.items() <= old.items()}
    for budget, of in ((budget, of) for budget, of in runs.items() if of):
        means = {name: statistics.mean(run[name] for run in of.values()) for name in LABELS}
        means["prior_accuracy"] = statistics.mean(run["prior"]["prior_accuracy"] for run in of.values())
        kept[f"{budget} labels"] = {"mean": means, "seeds": of}
    path.write_text(json.dumps({"machine": machine(), **way, **kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
