"""Training steps of a small model by hand, beside a slow version of its loss that keeps its own state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.pretrain.pretrain_module import PretrainModule

IMAGES = 40

IMAGE = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b"), count=IMAGES)


class Trainer:
    """What a step asks of it."""

    def __init__(self, batch_size: int = 8, max_steps: int = 24) -> None:
        self.global_step, self.max_steps, self.accumulate_grad_batches = 0, max_steps, 1
        self.world_size, self.is_global_zero, self.log_every_n_steps = 1, True, 10
        self.datamodule: Any = type("Data", (), {"batch_size": batch_size, "seed": 0})()
        self.optimizers: list[torch.optim.Optimizer] = []


def with_whole_set(init: Any, batches: list[Batch]) -> Any:
    """`Trainer.__init__` whose data has a pass over all images, in these batches."""

    def wrapped(self: Trainer, *arguments: Any) -> None:
        init(self, *arguments)
        self.datamodule.whole_set = lambda: batches

    return wrapped


def batch_of(step: int, size: int = 8, images: int = IMAGES, labels: Tensor | None = None) -> Batch:
    """Pixels of their own for each step; the images of one epoch come in the order of all others."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    indices = (step * size + torch.arange(size)) * 7 % images
    known = torch.full((size,), -1) if labels is None else labels[indices]
    return Batch(pixels, known, indices, Key.of(step, slots=torch.arange(size)))


def assert_steps_are(
    model: PretrainModule,
    slow: Callable[[Batch, int], Tensor],
    *,
    steps: int = 24,
    size: int = 8,
    labels: Tensor | None = None,
    tolerance: float = 1e-5,
    log: Callable[[int, dict[str, Tensor]], None] = lambda step, values: None,
) -> None:
    """Values and gradients of `training_step` are those of `slow`, step after step, in float64.

    Args:
        model: in training mode.
        slow: the loss of a batch, computed before the step is taken; it may keep state.
        steps: at least 20.
        size: of the batches.
        labels: of all images.
        tolerance: relative.
        log: is told the step and what is logged of it.
    """
    model.double()
    trainer = Trainer(size, steps)
    model.log_training = lambda *views, **values: log(trainer.global_step, values)  # type: ignore[method-assign]
    model.trainer = trainer  # type: ignore[assignment]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step in range(steps):
        trainer.global_step = step
        batch = batch_of(step, size, labels=labels)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        expected = slow(batch, step)
        gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
        for name, buffer in model.named_buffers():  # statistics of batch norm, which `slow` has moved
            buffer.copy_(before[name])
        loss = model.training_step(batch, step)
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=1e-9)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, own, other in zip(parameters, found, gradients, strict=True):
            zeros = torch.zeros_like(parameter)
            own, other = (zeros if gradient is None else gradient for gradient in (own, other))
            assert float((own - other).norm()) <= tolerance * float(other.norm()) + 1e-9
            parameter.grad = own
        model.optimizer_step(0, step, optimizer)  # type: ignore[arg-type]
