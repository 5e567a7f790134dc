"""Whether the device can compute in the precision asked for."""

import torch

from usl_lightning.errors import UslError


def check_precision(precision: str | int | None, accelerator: str) -> None:
    """Refuse what Lightning would silently replace by another precision, or emulate.

    Args:
        precision: as for Lightning's Trainer, `bf16-mixed`; None is full precision.
        accelerator: as for the Trainer; `auto` is a GPU if there is one.

    Raises:
        UslError: the device lacks it; names those that it has.
    """
    kind = str(precision)
    device = _device(accelerator)
    if device == "cpu" and kind in ("16", "16-mixed"):
        raise UslError(f"trainer.precision: {kind} is not for a CPU; use bf16-mixed or 32-true")
    if device == "cuda" and kind.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UslError(f"trainer.precision: {name} does not compute in {kind}; use 16-mixed or 32-true")
    if device == "mps" and kind.startswith("64"):
        raise UslError(f"trainer.precision: Apple GPUs do not compute in {kind}; use 32-true")


def _device(accelerator: str) -> str:
    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
