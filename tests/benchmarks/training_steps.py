"""What the benchmarks of stage 3 share: the steps of a method without a trainer, on images made from photographs."""

import time
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.semisup.semisup_module import SemiSupervisedModule

B, RATIO, CLASSES, SIDE, COUNT = 64, 7, 10, 32, 2048
UNLABELLED = 50_000
"""Images that FlexMatch keeps a record of: CIFAR-10's."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPEC = ImageSpec(3, SIDE, SIDE, (0.5,) * 3, (0.25,) * 3, tuple("0123456789"), count=UNLABELLED)


def training_steps(model: SemiSupervisedModule, images: Tensor, batch_size: int = B) -> Iterator[None]:
    """Steps of a method: its views, forward, backward, optimizer and moving average."""
    model.to(DEVICE)
    model.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]  # no trainer is attached
    optimizer = model.optimization.build(model, max_steps=1000, batch_size=batch_size)["optimizer"]
    for step in range(10**6):
        batch = SemiBatch(*draw_both(images, batch_size, step))
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.ema.update(model.model)
        yield


def draw_both(images: Tensor, batch_size: int, step: int) -> tuple[Batch, Batch]:
    """Random labelled and unlabelled images."""
    return _draw(images, batch_size, step, "x"), _draw(images, batch_size * RATIO, step, "u")


def _draw(images: Tensor, n: int, step: int, name: str) -> Batch:
    key = Key.of(0, name, step, slots=torch.arange(n, device=DEVICE))
    indices = key.integers(1, UNLABELLED)[:, 0]
    return Batch(images[indices % len(images)], indices % CLASSES, indices, key.fold("views"))


def pixels(pictures: list[Image.Image]) -> Tensor:
    """Pictures as uint8 [n, c, h, w] on the device."""
    to_tensor = transforms.PILToTensor()
    return torch.stack([to_tensor(picture) for picture in pictures]).to(DEVICE)


def seconds_of(running: Iterator[None]) -> float:
    """Seconds of the next step."""
    start = time.perf_counter()
    next(running)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
