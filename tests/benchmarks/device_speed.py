"""The measurements of `device.py`: steps, views, a transformer, a selection of ImageNet's size; and their memory."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from device_sizes import Size
from selection_speed import real_features
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from views import photos

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, SimCLRView, Weak
from usl_lightning.models.encoder import compile_encoders
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.selection.usl import PRESETS, regularized_selection
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.neighbors import knn

Found = Iterator[dict[str, Any]]

RATIO, COUNT = 7, 512
PRECISIONS: dict[str, torch.dtype | None] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def spec(side: int) -> ImageSpec:
    """Of coloured images with ten classes."""
    return ImageSpec(3, side, side, (0.5,) * 3, (0.25,) * 3, tuple("0123456789"), count=50_000)


def batch_of(images: Tensor, n: int, step: int, name: str) -> Batch:
    """Random images with random labels."""
    key = Key.of(0, name, step, slots=torch.arange(n, device=images.device))
    indices = key.integers(1, 50_000)[:, 0]
    return Batch(images[indices % len(images)], indices % 10, indices, key.fold("views"))


def pictures(side: int, count: int, device: str) -> Tensor:
    """uint8 [count, 3, side, side]."""
    return torch.stack([pil_to_tensor(picture) for picture in photos(count, side)]).to(device)


def seconds_of(work: Callable[[int], Any], steps: int, device: str) -> float:
    """The median seconds of a step, after three to warm up."""
    times = []
    for step in range(steps + 3):
        start = time.perf_counter()
        work(step)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def peak_gib(device: str) -> float | None:
    """The most memory of the GPU that tensors have held since the last question."""
    if device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(peak, 3)


def trained(model: Any, batches: Callable[[int], Any], dtype: torch.dtype | None, device: str) -> Callable[[int], None]:
    """A step of a method without a trainer: its views, forward, backward, optimizer and moving average."""
    model.to(device)
    model.log_dict = lambda *_, **__: None  # no trainer is attached
    model.log_training = lambda *_, **__: None
    optimizer = model.optimization.build(model, max_steps=1000, batch_size=64)["optimizer"]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def step(number: int) -> None:
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model.training_step(batches(number), number)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if isinstance(model, FixMatch):
            model.ema.update(model.model)

    return step


def report(step: Callable[[int], Any], images: int, size: Size, device: str) -> dict[str, Any]:
    """Seconds, images a second and peak memory."""
    peak_gib(device)
    seconds = seconds_of(step, size.steps, device)
    return {"seconds_per_step": seconds, "images_per_second": images / seconds, "peak_gib": peak_gib(device)}


def fixmatch(device: str, size: Size, *, compiled: bool = False) -> Found:
    """FixMatch on 32 × 32 pixels, seven unlabelled images beside a labelled one; and the share of its views."""
    images, n = pictures(32, COUNT, device), size.labelled

    def batches(step: int) -> SemiBatch:
        return SemiBatch(batch_of(images, n, step, "x"), batch_of(images, n * RATIO, step, "u"))

    rows: dict[str, Any] = {}
    for name, dtype in list(PRECISIONS.items())[: 1 if compiled else None]:
        torch.manual_seed(0)
        model = FixMatch(spec(32), Weak(), FixMatchStrong(), Optimization(nesterov=True), backbone=size.network)
        if compiled:
            compile_encoders(model)
        rows[name] = report(trained(model, batches, dtype, device), n * (1 + RATIO), size, device)
        yield rows
    weak, strong = Weak().to(device), FixMatchStrong().to(device)

    def views(step: int) -> None:
        both = batches(step)
        for batch in (both.labelled, both.unlabelled):
            weak(batch.images, batch.key.fold("weak"))
        strong(both.unlabelled.images, both.unlabelled.key.fold("strong"))

    seconds = seconds_of(views, size.steps, device)
    yield {**rows, "views_seconds": seconds, "views_share_of_bf16": seconds / rows["bf16"]["seconds_per_step"]}


def simclr(device: str, size: Size, *, compiled: bool = False) -> Found:
    """SimCLR on 32 × 32 pixels, two views of each image; and the share of its views."""
    backbone = size.network if size.network.startswith("small") else "resnet18_cifar"
    yield from _two_views(backbone, 32, size.two_views, device, size, compiled)


def vit(device: str, size: Size) -> Found:
    """A transformer of timm with two views of each image, in bfloat16."""
    name, side, n = size.vit
    for found in _two_views(name, side, n, device, size, False):
        yield {"network": name, "side": side, **found}


def _two_views(backbone: str, side: int, n: int, device: str, size: Size, compiled: bool) -> Found:
    images = pictures(side, min(COUNT, 2 * n), device)
    torch.manual_seed(0)
    model = SimCLR(spec(side), SimCLRView(), Optimization(), backbone=backbone)
    if compiled:
        compile_encoders(model)
    view = SimCLRView().to(device)

    def batches(step: int) -> Batch:
        return batch_of(images, n, step, "x")

    def views(step: int) -> None:
        batch = batches(step)
        for number in range(2):
            view(batch.images, batch.key.fold("view", number))

    row = report(trained(model, batches, torch.bfloat16, device), n, size, device)
    yield {"bf16": row}
    seconds = seconds_of(views, size.steps, device)
    yield {"bf16": row, "views_seconds": seconds, "views_share_of_bf16": seconds / row["seconds_per_step"]}


def views(device: str, size: Size) -> Found:
    """Images a second of the recipes, at the sizes of CIFAR and of ImageNet."""
    found = {}
    for side in (32, size.vit[1]):
        images = pictures(side, size.images, device)
        key = Key.of(0, "views", slots=torch.arange(len(images), device=device))
        for recipe in (Weak(), FixMatchStrong(), SimCLRView()):
            recipe.to(device)
            seconds = seconds_of(lambda step: recipe(images, key.fold(step)), size.steps, device)  # noqa: B023
            found[f"{type(recipe).__name__} {side}"] = {"images_per_second": len(images) / seconds}
            yield found


def selection(device: str, size: Size) -> Found:
    """USL of ImageNet's size from features of 128 numbers: neighbours, clusters and picks, each with its memory."""
    points, labels, k = size.selection
    x, preset = real_features(points).to(device), PRESETS["imagenet"]
    found: dict[str, Any] = {"points": points, "labels": labels, "k": k}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        peak_gib(device)
        start = time.perf_counter()
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        found[name] = {"seconds": time.perf_counter() - start, "peak_gib": peak_gib(device)}
        return result

    clusters = timed("kmeans", lambda: kmeans(x, labels, iterations=preset.kmeans_iterations))[0]
    yield found
    distance = timed("neighbours", lambda: knn(x, k)[0].double().mean(1))
    yield found
    weights = {"weight": preset.weight, "alpha": preset.alpha, "momentum": preset.momentum}
    options = {**weights, "nearest": preset.nearest, "exclude_same_cluster": preset.exclude_same_cluster}
    timed(
        "picks",
        lambda: regularized_selection(x, distance, clusters, iterations=preset.iterations, budget=labels, **options),
    )
    yield found


def compiled(device: str, size: Size) -> Found:
    """The same steps with `compile`."""
    found = {}
    for name, steps in (("FixMatch", fixmatch), ("SimCLR", simclr)):
        for found[name] in steps(device, size, compiled=True):
            yield found
