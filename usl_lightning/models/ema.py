"""Exponential moving averages of networks."""

import copy
import math
from typing import ClassVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from usl_lightning.base.ranges import Ranged, Ranges, at_least


def target_decay(step: int, max_steps: int, base: float) -> float:
    """1 − (1 − base)·(cos(πt/T) + 1)/2: from `base` at step 0 to 1 at the end (BYOL's appendix, "Optimization")."""
    return 1 - (1 - base) * (math.cos(math.pi * min(1.0, step / max(1, max_steps))) + 1) / 2


class EMA(Ranged, nn.Module):
    """A copy of a network whose parameters follow it slowly.

    `parameters ← decay·own + (1 − decay)·online`. The copy is part of the state dict and is never trained.

    Args:
        online: the network to follow.
        decay: in [0, 1); 0.999 in FixMatch.
        evaluated: the copy stays in evaluation mode and takes over the buffers (batch-norm statistics,
            normalisation) of the online network. False: it is in training mode with it and keeps batch-norm
            statistics of its own, as a momentum encoder does.
        average_buffers: of one that is `evaluated`: its batch-norm statistics follow as slowly as its parameters
            (EMAN: Cai et al., 2021).
    """

    ranges: ClassVar[Ranges] = {"decay": at_least(0, below=1)}

    def __init__(
        self, online: nn.Module, decay: float, *, evaluated: bool = True, average_buffers: bool = False
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(online).requires_grad_(False)
        self.decay, self.evaluated, self.average_buffers = decay, evaluated, average_buffers
        self.train()

    def train(self, mode: bool = True) -> "EMA":
        """Training mode only for a copy that is not `evaluated`."""
        return super().train(mode and not self.evaluated)

    @torch.no_grad()
    def update(self, online: nn.Module) -> None:
        """One step towards `online`, in a few fused kernels."""
        step = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        step(list(self.module.parameters()), list(online.parameters()), None)
        if self.evaluated:
            for own, new in zip(self.module.buffers(), online.buffers(), strict=True):
                if self.average_buffers and own.is_floating_point():
                    own.lerp_(new, 1 - self.decay)
                else:
                    own.copy_(new)

    @torch.no_grad()
    def copy_from(self, online: nn.Module) -> None:
        """Start again from `online` (after `init_from`)."""
        self.module.load_state_dict(online.state_dict())
