"""How fast views are made, against the usual per-image pipeline of torchvision transforms on Pillow images.

    python tests/benchmarks/views.py [--threads 1] [--repeats 15]

Both sides start from the same real 32×32 images, kept as they like best (uint8 batch; Pillow images), and end with
float tensors. They are timed in turns, so that a slow moment of the machine hits both; the median of each counts.
Prints a table and writes tests/benchmarks/results/views.json.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision import transforms

from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, SimCLRView, Weak

BATCH, SIDE = 448, 32


def photos(count: int, side: int) -> list[Image.Image]:
    """Patches of scikit-learn's two photographs, at several scales."""
    from sklearn.datasets import load_sample_images

    scenes = [Image.fromarray(scene) for scene in load_sample_images().images]
    draw = np.random.default_rng(0)
    patches = []
    for i in range(count):
        scene = scenes[i % len(scenes)]
        extent = int(draw.integers(side, 420))
        left, top = (int(draw.integers(0, whole - extent + 1)) for whole in scene.size)
        patches.append(scene.crop((left, top, left + extent, top + extent)).resize((side, side)))
    return patches


def pil_cutout(image: Image.Image) -> Image.Image:
    """A grey square of half the side, as the published FixMatch code paints it."""
    w, h = image.size
    v = w // 2
    x0, y0 = (int(max(0, random.uniform(0, side) - v / 2)) for side in (w, h))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x0, y0, min(w, x0 + v), min(h, y0 + v)), (127, 127, 127))
    return image


PIL_WEAK = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(SIDE, padding=4, padding_mode="reflect")]
PIPELINES: dict[str, tuple[torch.nn.Module, Callable[[Image.Image], Tensor]]] = {
    "FixMatch weak": (Weak(), transforms.Compose([*PIL_WEAK, transforms.ToTensor()])),
    "FixMatch strong": (
        FixMatchStrong(),
        transforms.Compose([*PIL_WEAK, transforms.RandAugment(2, 10), pil_cutout, transforms.ToTensor()]),
    ),
    "SimCLR": (
        SimCLRView(),
        transforms.Compose(
            [
                transforms.RandomResizedCrop(SIDE, scale=(0.08, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.ToTensor(),
            ]
        ),
    ),
}


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(view: torch.nn.Module, pipeline: Callable[[Image.Image], Tensor], repeats: int) -> dict[str, Any]:
    """Median times in milliseconds a batch, and their ratio."""
    patches = photos(BATCH, SIDE)
    images = torch.from_numpy(np.stack([np.asarray(patch) for patch in patches])).permute(0, 3, 1, 2).contiguous()
    ours, theirs = [], []
    for step in range(repeats + 1):
        key = Key.of(0, "benchmark", step, slots=torch.arange(BATCH))
        ours.append(seconds(lambda key=key: view(images, key)))
        theirs.append(seconds(lambda: torch.stack([pipeline(patch) for patch in patches])))
    ours_ms, theirs_ms = (round(1000 * statistics.median(times[1:]), 2) for times in (ours, theirs))
    return {
        "ours_ms": ours_ms,
        "pil_ms": theirs_ms,
        "ours_images_per_s": round(BATCH / ours_ms * 1000),
        "pil_images_per_s": round(BATCH / theirs_ms * 1000),
        "ratio": round(theirs_ms / ours_ms, 1),
    }


def main() -> None:
    """Compare every pipeline, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (Pillow uses one)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "views.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    torch.manual_seed(0)
    results = {}
    print(f"{BATCH} images of {SIDE}x{SIDE}x3, {arguments.threads} thread(s)")
    print(f"{'view':16} {'ours ms':>9} {'PIL ms':>9} {'ours img/s':>11} {'PIL img/s':>10} {'ratio':>6}")
    for name, (view, pipeline) in PIPELINES.items():
        r = results[name] = compare(view, pipeline, arguments.repeats)
        print(
            f"{name:16} {r['ours_ms']:9.2f} {r['pil_ms']:9.1f} {r['ours_images_per_s']:11,}"
            f" {r['pil_images_per_s']:10,} {r['ratio']:5.1f}x"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"batch": BATCH, "side": SIDE, "machine": machine(), "views": results}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
