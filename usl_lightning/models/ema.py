"""Exponential moving averages of networks."""

import copy

import torch
from torch import nn


class EMA(nn.Module):
    """A copy of a network whose parameters follow it slowly.

    `parameters ← decay·own + (1 − decay)·online`; buffers (batch-norm statistics, normalisation) are copied.
    The copy is part of the state dict, is never trained and stays in evaluation mode.

    Args:
        online: the network to follow.
        decay: in [0, 1); 0.999 in FixMatch.
    """

    def __init__(self, online: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(online).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> "EMA":
        """Evaluation mode, always."""
        return super().train(False)

    @torch.no_grad()
    def update(self, online: nn.Module) -> None:
        """One step towards `online`, in a few fused kernels."""
        own, new = list(self.module.parameters()), list(online.parameters())
        torch._foreach_lerp_(own, new, 1.0 - self.decay)  # type: ignore[arg-type]
        buffers = list(self.module.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(online.buffers()))

    @torch.no_grad()
    def copy_from(self, online: nn.Module) -> None:
        """Start again from `online` (after `init_from`)."""
        self.module.load_state_dict(online.state_dict())
