"""Training steps of the methods of stage 3, data included, relative to FixMatch's, in one run.

    python tests/benchmarks/methods_throughput.py [--steps 6] [--batch_size 64]

WRN-28-2, B=64, 7 times as many unlabelled images, 32×32×3 made from real photographs, bf16 autocast; each method with
the views of its CIFAR-10 configuration. The methods take turns, a step each, so that whatever else the machine does
hits all alike; a method's cost is the median over the turns of its seconds over FixMatch's in the same turn. CoMatch's
bank is full from the first step, as it is in training after five. Prints a table and writes
results/methods_throughput.json, with another batch size results/methods_throughput_b<B>.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import machine
from torch import Tensor
from torchvision import transforms
from views import photos

from usl_lightning.allocator import keep_freed_memory
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import CoMatchStrong, FixMatchStrong, Weak
from usl_lightning.optim import Optimization
from usl_lightning.semisup.base import SemiSupervisedModule
from usl_lightning.semisup.comatch import CoMatch
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.semisup.flexmatch import FlexMatch
from usl_lightning.semisup.mixmatch import MixMatch

RATIO, CLASSES, SIDE, COUNT = 7, 10, 32, 2048
UNLABELLED = 50_000
"""Images that FlexMatch keeps a record of: CIFAR-10's."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPEC = ImageSpec(3, SIDE, SIDE, (0.5,) * 3, (0.25,) * 3, tuple("0123456789"), count=UNLABELLED)
SGD = Optimization(nesterov=True)


def comatch(batch_size: int) -> CoMatch:
    """CoMatch with a bank of 5 batches, already full."""
    bank_size = 5 * (1 + RATIO) * batch_size
    model = CoMatch(SPEC, Weak(), FixMatchStrong("comatch"), CoMatchStrong(), SGD, bank_size=bank_size)
    for ring in (model.bank_probs, model.bank_embeddings):
        ring.written.fill_(bank_size)
    return model


METHODS: dict[str, Callable[[int], SemiSupervisedModule]] = {
    "FixMatch": lambda _: FixMatch(SPEC, Weak(), FixMatchStrong(), SGD),
    "FlexMatch": lambda _: FlexMatch(SPEC, Weak(), FixMatchStrong(), SGD),
    "CoMatch": comatch,
    "MixMatch": lambda _: MixMatch(SPEC, Weak(), SGD),
}


def steps(model: SemiSupervisedModule, images: Tensor, batch_size: int) -> Iterator[None]:
    """Steps of a method: its views, forward, backward, optimizer and moving average."""
    model.to(DEVICE)
    model.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # no trainer is attached
    optimizer = model.optimization.build(model, max_steps=1000, batch_size=batch_size)["optimizer"]
    for step in range(10**6):
        sizes = {"x": batch_size, "u": batch_size * RATIO}
        labelled, unlabelled = (draw(images, size, step, name) for name, size in sizes.items())
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model.training_step(SemiBatch(labelled, unlabelled), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.ema.update(model.model)
        yield


def draw(images: Tensor, n: int, step: int, name: str) -> Batch:
    """A batch of n random images."""
    key = Key.of(0, name, step, slots=torch.arange(n, device=DEVICE))
    indices = key.integers(1, UNLABELLED)[:, 0]
    return Batch(images[indices % len(images)], indices % CLASSES, indices, key.fold("views"))


def seconds_of(running: Iterator[None]) -> float:
    """Seconds of the next step."""
    start = time.perf_counter()
    next(running)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=64)
    arguments = parser.parse_args()
    b = arguments.batch_size
    if DEVICE == "cpu":
        keep_freed_memory()
    pixels = torch.stack([transforms.PILToTensor()(picture) for picture in photos(COUNT, SIDE)]).to(DEVICE)
    running = {name: steps(make(b), pixels, b) for name, make in METHODS.items()}
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
    suffix = ("_gpu" if DEVICE == "cuda" else "") + ("" if b == 64 else f"_b{b}")
    path = Path(__file__).parent / "results" / f"methods_throughput{suffix}.json"
    about = {"machine": machine(), "batch_size": b, "unlabelled_ratio": RATIO, "steps": arguments.steps}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
