"""Training steps of the methods of stage 3, data included, relative to FixMatch's, in one run.

    python tests/benchmarks/methods_throughput.py [--steps 6] [--batch_size 64]

WRN-28-2, B=64, 7 times as many unlabelled images, 32×32×3 made from real photographs, bf16 autocast; each method with
the views of its CIFAR-10 configuration. The methods take turns, a step each, so that whatever else the machine does
hits all alike; a method's cost is the median over the turns of its seconds over FixMatch's in the same turn. CoMatch's
bank is full from the first step, as it is in training after five; "guided" is FlexMatch with a prior of AS3L's six
clusterings. Prints a table and writes
results/methods_throughput.json, with another batch size results/methods_throughput_b<B>.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from training_steps import CLASSES, COUNT, DEVICE, RATIO, SIDE, SPEC, UNLABELLED, B, pixels, seconds_of, training_steps
from views import photos

from usl_lightning.compute.device import keep_freed_memory
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.views import CoMatchStrong, FixMatchStrong, Weak
from usl_lightning.semisup.boss import BOSS
from usl_lightning.semisup.comatch import CoMatch
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.semisup.flexmatch import FlexMatch
from usl_lightning.semisup.freematch import FreeMatch
from usl_lightning.semisup.mixmatch import MixMatch
from usl_lightning.semisup.semisup_module import SemiSupervisedModule
from usl_lightning.semisup.softmatch import SoftMatch
from usl_lightning.semisup.uda import UDA
from usl_lightning.vectors.priors import MULTIPLES, Prior

SGD = Optimization(nesterov=True)


def comatch(batch_size: int) -> CoMatch:
    """CoMatch with a bank of 5 batches, already full."""
    bank_size = 5 * (1 + RATIO) * batch_size
    model = CoMatch(SPEC, Weak(), FixMatchStrong("comatch"), CoMatchStrong(), SGD, bank_size=bank_size)
    for ring in (model.bank_probs, model.bank_embeddings):
        ring.written.fill_(bank_size)
    return model


def guided(_: int) -> FlexMatch:
    """FlexMatch with a prior of all images, of any clusters."""
    model = FlexMatch(SPEC, Weak(), FixMatchStrong("torchssl"), SGD, prior_file="not read")
    assert model.guidance is not None
    runs, most = len(MULTIPLES), CLASSES * MULTIPLES[-1]
    clusters = torch.randint(most, (UNLABELLED, runs), dtype=torch.int32)
    tables = torch.rand(runs, most, CLASSES).softmax(2)
    model.guidance._take(Prior(clusters, tables, torch.full((UNLABELLED,), 1 / runs)))
    return model


METHODS: dict[str, Callable[[int], SemiSupervisedModule]] = {
    "FixMatch": lambda _: FixMatch(SPEC, Weak(), FixMatchStrong(), SGD),
    "FlexMatch": lambda _: FlexMatch(SPEC, Weak(), FixMatchStrong("torchssl"), SGD),
    "guided": guided,
    "FreeMatch": lambda _: FreeMatch(SPEC, Weak(), FixMatchStrong("torchssl"), SGD),
    "SoftMatch": lambda _: SoftMatch(SPEC, Weak(), FixMatchStrong("torchssl"), SGD),
    "BOSS": lambda _: BOSS(SPEC, Weak(), FixMatchStrong("torchssl"), SGD),
    "UDA": lambda _: UDA(SPEC, Weak(), FixMatchStrong("torchssl"), SGD),
    "CoMatch": comatch,
    "MixMatch": lambda _: MixMatch(SPEC, Weak(), SGD),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=B)
    arguments = parser.parse_args()
    b = arguments.batch_size
    if DEVICE == "cpu":
        keep_freed_memory()
    images = pixels(photos(COUNT, SIDE))
    running = {name: training_steps(make(b), images, b) for name, make in METHODS.items()}
    turns = [{name: seconds_of(own) for name, own in running.items()} for _ in range(arguments.steps + 2)][2:]
    rows = {}
    print(f"{'':10} {'s/step':>8} {'images/s':>9} {'of FixMatch':>12}")
    for name in METHODS:
        seconds = statistics.median(turn[name] for turn in turns)
        cost = statistics.median(turn[name] / turn["FixMatch"] for turn in turns)
        rows[name] = {
            "seconds_per_step": seconds,
            "images_per_second": b * (1 + RATIO) / seconds,
            "relative_cost": cost,
        }
        print(f"{name:10} {seconds:8.3f} {rows[name]['images_per_second']:9.0f} {cost:12.3f}")
    suffix = ("_gpu" if DEVICE == "cuda" else "") + ("" if b == B else f"_b{b}")
    path = Path(__file__).parent / "results" / f"methods_throughput{suffix}.json"
    about = {"machine": machine(), "batch_size": b, "unlabelled_ratio": RATIO, "steps": arguments.steps}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
