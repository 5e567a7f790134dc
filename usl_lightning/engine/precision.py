"""Whether the device, and the method, can compute in the precision asked for."""

import torch
from torch import nn

from usl_lightning.base.errors import UslError
from usl_lightning.compute.batch_norm import batch_norms
from usl_lightning.compute.precision import device_of
from usl_lightning.models.ema import EMA


def check_precision(precision: str | int | None, accelerator: str) -> None:
    """Refuse what Lightning would silently replace by another precision, or emulate.

    Args:
        precision: as for Lightning's Trainer, `bf16-mixed`; None is full precision.
        accelerator: as for the Trainer; `auto` is a GPU if there is one.

    Raises:
        UslError: the device lacks it; names those that it has.
    """
    kind = str(precision)
    device = device_of(accelerator)
    if device == "cpu" and kind in ("16", "16-mixed", "16-true"):
        raise UslError(f"trainer.precision: {kind} is not for a CPU; use bf16-mixed or 32-true")
    if device == "cuda" and kind.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UslError(f"trainer.precision: {name} does not compute in {kind}; use 16-mixed or 32-true")
    if device == "mps" and kind.startswith("64"):
        raise UslError(f"trainer.precision: Apple GPUs do not compute in {kind}; use 32-true")


def check_averages(network: nn.Module, precision: str | int | None) -> None:
    """Refuse weights of 16 bits where a moving average takes steps too small for them: it would stand still.

    Args:
        network: with its moving averages of weights (`EMA`) and of batch statistics.
        precision: as for Lightning's Trainer.

    Raises:
        UslError: a step is smaller than 4 units in the last place.
    """
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(str(precision))
    if dtype is None:
        return
    averages = [(1 - part.decay, "the weights") for part in network.modules() if isinstance(part, EMA) and part.decay]
    averages += [(n.momentum, "batch norm's statistics") for n in batch_norms(network) if n.momentum is not None]
    step, what = min(averages, default=(1.0, ""))
    if step < 4 * torch.finfo(dtype).eps:
        mixed = str(precision).replace("true", "mixed")
        raise UslError(
            f"trainer.precision: a moving average of {what} in steps of {step:.2g} would stand still in {precision}; "
            f"use {mixed}"
        )
