"""How fast this machine learns from images: the network, size and precision that its time allows, measured."""

import hashlib
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.machine import cores
from usl_lightning.base.progress import progress
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.engine.trainer import check_precision
from usl_lightning.init.folder import Inspection
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.heads import projection_mlp

CPU_TABLE = (
    (48, 64, ("small_s2_w64", "small_s2")),
    (24, 32, ("small", "small_s2")),
    (0, 16, ("small",)),
)
GPU_TABLE = (
    (176, 224, ("resnet50", "resnet18")),
    (80, 96, ("resnet18",)),
    (48, 64, ("resnet18_cifar",)),
    (24, 32, ("resnet18_cifar", "small_s2")),
    (0, 16, ("small",)),
)
"""Images of at least so many pixels (the shorter side) are made so large, for these networks: the best first."""

BATCHES = {"cpu": 64, "cuda": 256, "mps": 128}
"""Images of the batch that is timed."""

SECONDS, STEPS = 0.6, 10
"""A network is timed for about so long, or for so many steps."""


@dataclass(frozen=True)
class Network:
    """A backbone for images of a size, and how fast it learns here.

    Attributes:
        backbone: see `create_backbone`.
        height, width: of its images in pixels.
        image_size: side that images are brought to; None: they are all of this size.
        precision: as for Lightning's Trainer.
        views_per_second: drawn, and gone through forwards and backwards.
        fits: images of a batch, each with two views, for which there is memory.
    """

    backbone: str
    height: int
    width: int
    image_size: int | None
    precision: str = "32-true"
    views_per_second: float = 0.0
    fits: int = 256


def device_name() -> str:
    """The device that training takes by itself: `cuda`, `mps` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def machine_name() -> str:
    """`2 CPU cores`, or the GPUs by name."""
    if device_name() == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return names[0] if len(names) == 1 else f"{len(names)} GPUs ({names[0]})"
    if device_name() == "mps":
        return "an Apple GPU"
    number = cores()
    return f"{number} CPU core{'s' * (number != 1)}"


def busyness(rounds: int = 7) -> float:
    """How many times as long work takes now as on this machine when it is free: wall time over processor time.

    Each of torch's threads hashes for a moment, which needs no memory and no other thread; the median of some rounds.
    """
    threads = torch.get_num_threads()
    content = bytes(1_000_000)

    def work(_: int) -> float:
        start = time.thread_time()
        for _ in range(60):
            hashlib.sha256(content)
        return time.thread_time() - start

    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            spent = list(pool.map(work, range(threads)))
            times.append((time.perf_counter() - start) / max(spent))
    return max(1.0, statistics.median(times))


def candidates(found: Inspection, device: str) -> list[Network]:
    """The networks that suit the images, the best and slowest first.

    Images that are all of about the table's size are taken as they are.
    """
    table = CPU_TABLE if device == "cpu" else GPU_TABLE
    fitting = [row for row in table if found.side >= row[0] and (row[0] > 0 or found.side < table[-2][0])]
    networks = []
    for rank, (_, side, backbones) in enumerate(fitting):
        (height, width), one_size = next(iter(found.sizes)), len(found.sizes) == 1
        as_they_are = one_size and rank == 0 and max(height, width) <= 1.3 * side and min(height, width) >= 8
        size = (height, width, None) if as_they_are else (side, side, side)
        networks += [Network(backbone, *size) for backbone in backbones]
    return networks


def fastest_precision(network: Network, view: nn.Module, channels: int, device: str) -> Network:
    """The network in the precision that is faster here, bfloat16 or float32, with its speed."""
    kinds = []
    for kind in ("bf16-mixed", "16-mixed"):
        try:
            check_precision(kind, "auto")
        except UslError:
            continue
        kinds.append(kind)
    kinds = kinds[:1] if device == "cuda" else [*kinds[:1], "32-true"]
    timings = (timed(replace(network, precision=kind), view, channels, device) for kind in kinds)
    return max(timings, key=lambda network: network.views_per_second)


def timed(network: Network, view: nn.Module, channels: int, device: str) -> Network:
    """The network with its speed: SimCLR steps on made-up images."""
    image = ImageSpec(channels, network.height, network.width, (0.5,) * channels, (0.25,) * channels)
    encoder = Encoder(network.backbone, image)
    learner = nn.ModuleList([encoder, projection_mlp(encoder.feature_dim, 512, 128)]).to(device).train()
    batch, steps, spent = BATCHES[device], 0, 0.0
    shape = (batch, channels, network.height, network.width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    while steps < STEPS and spent < SECONDS:
        start = time.perf_counter()
        try:
            slots = torch.arange(len(images), device=device)
            _step(learner, view, images, Key.of("speed", steps, slots=slots), network)
        except torch.OutOfMemoryError as error:
            if len(images) <= 16:
                raise UslError(f"usl init: {network.backbone} does not fit into the GPU's memory") from error
            images = images[: len(images) // 2]
            continue
        if steps:  # the first one warms up
            spent += time.perf_counter() - start
        steps += 1
    rate = 2 * len(images) * max(1, steps - 1) / max(spent, 1e-9)
    return replace(network, views_per_second=rate, fits=len(images) if device == "cuda" else network.fits)


def _step(learner: nn.ModuleList, view: nn.Module, images: torch.Tensor, key: Key, network: Network) -> None:
    """One SimCLR step without its update, and a loss in place of its own, which takes no time; waits for the device."""
    kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(network.precision)
    with nullcontext() if kind is None else torch.autocast(images.device.type, kind):
        views = [view(images, key.fold("view", i)) for i in range(2)]
        z = learner[1](learner[0](torch.cat(views)))
    loss = z.float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    learner.zero_grad()
    loss.item()  # wait for the device


def best_network(
    networks: Sequence[Network], views: Sequence[nn.Module], channels: int, device: str, wanted: float
) -> tuple[int, Network]:
    """The first network that looks at `wanted` views a second, else the fastest, timed; and its place.

    Args:
        networks: the best first.
        views: for each of them, what draws its views.
        channels: 1 or 3.
        device: where it will train.
        wanted: views a second.
    """
    tried: list[Network] = []
    with progress("timing networks", len(networks), "network") as bar:
        for network, view in zip(networks, views, strict=True):
            if tried:
                tried.append(timed(replace(network, precision=tried[0].precision), view, channels, device))
            else:
                tried.append(fastest_precision(network, view, channels, device))
            if tried[-1].views_per_second >= wanted:
                return len(tried) - 1, tried[-1]
            bar.update()
    return max(enumerate(tried), key=lambda entry: entry[1].views_per_second)
