"""FixMatch training steps, data included: this package beside a plain recipe, in one run.

    python tests/benchmarks/fixmatch_throughput.py [--steps 6]

WRN-28-2, B=64, 7 times as many unlabelled images, 32×32×3 made from real photographs. The plain recipe is what
published code does: fp32, contiguous, torchvision/Pillow views in 2 worker processes, a moving average parameter by
parameter. Ours is the shipped method: views in the process that trains, bf16 autocast, channels_last, fused
optimizer and average; also with its two switches, `compile` (the same computation) and `joint_pass: false` (the
pseudo-labels come from a pass of their own, without gradient). Each side runs in a process of its own; the median step
counts. The share of the views in a step is its last row over `usl-lightning`'s. Prints a table and writes
results/fixmatch_throughput.json. On a machine with a GPU everything but the plain recipe's views runs there.
"""

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from training_steps import CLASSES, COUNT, DEVICE, RATIO, SIDE, SPEC, B, draw_both, pixels, seconds_of, training_steps
from views import PIPELINES, photos

from usl_lightning.compute.device import keep_freed_memory
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.encoder import compile_encoders
from usl_lightning.models.guesses import fixmatch_loss
from usl_lightning.models.heads import Classifier
from usl_lightning.semisup.fixmatch import FixMatch


def our_steps(pictures: list[Image.Image], *, compiled: bool = False, joint_pass: bool = True) -> Iterator[None]:
    """Steps of the shipped FixMatch, its views, forward, backward, optimizer and moving average."""
    if DEVICE == "cpu":
        keep_freed_memory()
    images = pixels(pictures)
    model = FixMatch(SPEC, Weak(), FixMatchStrong(), Optimization(nesterov=True), joint_pass=joint_pass).to(DEVICE)
    if compiled:
        compile_encoders(model)
    yield from training_steps(model, images)


def our_views(pictures: list[Image.Image]) -> Iterator[None]:
    """The views of such a step alone."""
    images, weak, strong = pixels(pictures), Weak(), FixMatchStrong()
    for step in range(10**6):
        labelled, unlabelled = draw_both(images, B, step)
        weak(labelled.images, labelled.key.fold("weak"))
        weak(unlabelled.images, unlabelled.key.fold("weak"))
        strong(unlabelled.images, unlabelled.key.fold("strong"))
        yield


class PlainImages(Dataset):
    """Each image with its views, made by Pillow."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures
        self.weak, self.strong = PIPELINES["FixMatch weak"][1], PIPELINES["FixMatch strong"][1]

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        picture = self.pictures[i % len(self.pictures)]
        return self.weak(picture), self.strong(picture)


class PlainLabelled(PlainImages):
    """Each image's weak view and its label."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return self.weak(self.pictures[i % len(self.pictures)]), i % CLASSES


def plain_steps(pictures: list[Image.Image]) -> Iterator[None]:
    """Steps of the plain recipe, with the same network and loss."""
    model = FixMatch(SPEC, Weak(), FixMatchStrong(), Optimization()).model.to(
        DEVICE, memory_format=torch.contiguous_format
    )
    average = copy.deepcopy(model)
    model.encoder.forward = _contiguous_forward(model)  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(model.parameters(), 0.03, 0.9, weight_decay=5e-4, nesterov=True, foreach=False)
    labelled = iter(DataLoader(PlainLabelled(pictures), B, num_workers=1))
    unlabelled = iter(DataLoader(PlainImages(pictures), B * RATIO, num_workers=1))
    while True:
        (x, labels), (weak, strong) = next(labelled), next(unlabelled)
        logits, labels = model(torch.cat([x, weak, strong]).to(DEVICE)), labels.to(DEVICE)
        logits_x, logits_w, logits_s = logits.split([B, B * RATIO, B * RATIO])
        loss = F.cross_entropy(logits_x, labels) + fixmatch_loss(logits_w, logits_s, threshold=0.95)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, new in zip(average.parameters(), model.parameters(), strict=True):
                mine.mul_(0.999).add_(new, alpha=0.001)
        yield


def _contiguous_forward(model: Classifier) -> Callable[[Tensor], Tensor]:
    encoder = model.encoder
    return lambda images: encoder.net((images - encoder.mean) / encoder.std)


SIDES: dict[str, Callable[[list[Image.Image]], Iterator[None]]] = {
    "plain recipe": plain_steps,
    "usl-lightning": our_steps,
    "compile": partial(our_steps, compiled=True),
    "joint_pass: false": partial(our_steps, joint_pass=False),
    "both": partial(our_steps, compiled=True, joint_pass=False),
    "its views alone": our_views,
}


def measure(side: str, steps: int, results: Any) -> None:
    """Median seconds of a step after two to warm up, and the peak memory, of one side in this process."""
    pictures = photos(COUNT, SIDE)
    running = SIDES[side](pictures)
    times = [seconds_of(running) for _ in range(steps + 2)]
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    results.put((statistics.median(times[2:]), (own + children) / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), help="compiling takes a minute")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, float]] = {}
    for side in arguments.sides:
        results = context.Queue()
        process = context.Process(target=measure, args=(side, arguments.steps, results))
        process.start()
        seconds, gib = results.get()
        process.terminate()
        rows[side] = {"seconds_per_step": seconds, "images_per_second": B * (1 + RATIO) / seconds, "peak_gib": gib}
    print(f"{'':18} {'s/step':>8} {'images/s':>9} {'peak GiB':>9} {'speed-up':>9}")
    for side, row in rows.items():
        row["speed_up"] = rows["plain recipe"]["seconds_per_step"] / row["seconds_per_step"]
        print(
            f"{side:18} {row['seconds_per_step']:8.2f} {row['images_per_second']:9.0f} {row['peak_gib']:9.2f} "
            f"{row['speed_up']:9.2f}"
        )
    share = rows["its views alone"]["seconds_per_step"] / rows["usl-lightning"]["seconds_per_step"]
    print(f"views: {100 * share:.1f}% of a step")
    suffix = "_gpu" if DEVICE == "cuda" else ""
    path = Path(__file__).parent / "results" / f"fixmatch_throughput{suffix}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows, "views_share": share}, indent=1) + "\n")


if __name__ == "__main__":
    main()
