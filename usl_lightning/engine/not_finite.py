"""Ends a run whose loss or weights are no numbers any more."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from usl_lightning.base.errors import UslError


class StopOnNaN(Callback):
    """Ends a run after a loss that is not finite, before it is saved, and names the step of that loss.

    Args:
        every: batches between looks; each look waits for the device.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._step = 0  # the one being taken
        self._first: Tensor | None = None  # on the device: the first step of such a loss; 0 if there was none

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step: it is counted on before the end of its last batch."""
        self._step = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember on the device whether the loss is finite; look from time to time."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            bad = loss.detach().isfinite().logical_not() * self._step
            self._first = bad if self._first is None else torch.where(self._first > 0, self._first, bad)
        if (batch_idx + 1) % self.every == 0:
            self._look()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never save what cannot be continued."""
        self._look()
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise UslError(_not_finite(trainer.global_step, name))

    def _look(self) -> None:
        first = 0 if self._first is None else int(self._first)
        if first:
            raise UslError(_not_finite(first, "the loss"))


def _not_finite(step: int, what: str) -> str:
    return (
        f"step {step}: {what} is not finite; the last good checkpoint is kept. "
        "Lower model.optimizer.lr or use --trainer.precision 32-true"
    )
