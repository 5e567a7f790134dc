"""Whether the device, and the method, can compute in the precision asked for."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if it is float64: losses are not computed in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def device_of(accelerator: str) -> str:
    """`cuda`, `mps` or `cpu`: what a Trainer with this accelerator computes on here."""
    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
