"""Optimizers and schedules, as closed forms of the step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, check, rising, whole, within

Schedule = Literal["cosine", "fixmatch", "milestones", "constant"]


def lr_factor(
    step: int,
    max_steps: int,
    *,
    schedule: Schedule,
    warmup_steps: int = 0,
    milestones: Sequence[float] = (),
    decay: float = 0.1,
) -> float:
    """What the base learning rate is multiplied by at `step` (0-based).

    Linear warm-up over `warmup_steps`, then "cosine": ½(1 + cos πt) to 0 (Loshchilov & Hutter, 2017),
    "fixmatch": cos(7πt/16) (Sohn et al., 2020, §2.3), or "constant"; t runs from 0 to 1 after the warm-up.
    "milestones": × `decay` from each share of all steps in `milestones` on.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    t = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * t))
    if schedule == "fixmatch":
        return math.cos(7 * math.pi * t / 16)
    if schedule == "milestones":
        return decay ** sum(step >= milestone * max_steps for milestone in milestones)
    return 1.0


def ramp_up(step: int, length: int) -> float:
    """The share of a loss's weight at `step` (0-based): linear from 0 to 1 over `length` steps, 1 from there on."""
    return min(1.0, step / length) if length else 1.0


def sigmoid_ramp_up(step: int, length: int) -> float:
    """The same along exp(−5(1 − t)²), t from 0 to 1 over `length` steps (Laine & Aila, 2017): it begins at 0.0067."""
    return math.exp(-5 * (1 - ramp_up(step, length)) ** 2)


@dataclass(frozen=True)
class Optimization:
    """How the weights are updated.

    Attributes:
        name: "sgd", "adam" (weight decay as an L2 term), "adamw" or "lars" (You et al., 2017; biases and norms
            are left to SGD).
        lr: base learning rate.
        per_batch: if set, `lr` is meant for this global batch and is scaled linearly to the actual one.
        momentum: of SGD and LARS.
        nesterov: of SGD.
        weight_decay: not applied to biases and norms (any parameter of one dimension or none).
        schedule: "cosine", "fixmatch", "milestones" or "constant"; see `lr_factor`.
        warmup_steps: steps of linear warm-up.
        milestones: of that schedule: shares of the training, [0.6, 0.8] for epochs 120 and 160 of 200.
        decay: what the rate is multiplied by at each of them.
    """

    ranges: ClassVar[Ranges] = {
        "lr": at_least(0),
        "per_batch": whole(1),
        "momentum": at_least(0, below=1),
        "weight_decay": at_least(0),
        "warmup_steps": whole(0),
        "milestones": rising(within(0, 1)),
        "decay": above(0, up_to=1),
    }

    name: Literal["sgd", "adam", "adamw", "lars"] = "sgd"
    lr: float = 0.03
    per_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    milestones: tuple[float, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is out of range, and Nesterov's momentum where there is none."""
        check(type(self), vars(self))
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise UslError("model.optimizer.nesterov: it needs a momentum; expected model.optimizer.momentum above 0")
        if (self.schedule == "milestones") != bool(self.milestones):
            raise UslError("model.optimizer.milestones: expected with schedule milestones, and with no other")

    def build(
        self,
        module: nn.Module,
        *,
        max_steps: int,
        batch_size: int,
        constant: Sequence[nn.Module] = (),
        clipped: bool = False,
    ) -> dict[str, Any]:
        """What `configure_optimizers` returns: the optimizer and its per-step schedule.

        Args:
            module: its parameters that require a gradient are optimized.
            max_steps: optimizer steps of the whole run.
            batch_size: images of an optimizer step over all processes and accumulated batches, for `per_batch`.
            constant: parts of `module` whose learning rate stays as it is at the start.
            clipped: the trainer clips gradients, which Lightning refuses for fused optimizers under mixed precision.
        """
        lr = self.lr * batch_size / self.per_batch if self.per_batch else self.lr
        groups = _groups(module, constant, self.weight_decay)
        parameters = [{k: v for k, v in group.items() if k != "constant"} for group in groups]
        optimizer = self._optimizer(parameters, lr, fused=not clipped)
        # A partial keeps its arguments out of checkpoints: an extended run has a schedule of its own length.
        factor = partial(
            lr_factor,
            max_steps=max_steps,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            milestones=self.milestones,
            decay=self.decay,
        )
        factors: list[Callable[[int], float]] = [_unchanged if group["constant"] else factor for group in groups]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"},
        }

    def _optimizer(self, groups: list[dict[str, Any]], lr: float, *, fused: bool) -> Optimizer:
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr, self.momentum, nesterov=self.nesterov, fused=fused)
        if self.name in ("adam", "adamw"):
            return (torch.optim.Adam if self.name == "adam" else torch.optim.AdamW)(groups, lr, fused=fused)
        from timm.optim import Lars

        for group in groups:  # by itself, timm adapts only the rates of weights that decay
            group["always_adapt"] = group["params"][0].ndim > 1
        return Lars(groups, lr, momentum=self.momentum)


def _unchanged(step: int) -> float:
    return 1.0


def _groups(module: nn.Module, constant: Sequence[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters by whether they decay and whether their learning rate is scheduled; none empty."""
    fixed = {id(p) for part in constant for p in part.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, id(parameter) in fixed), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "constant": is_constant}
        for (decays, is_constant), parameters in groups.items()
    ]
