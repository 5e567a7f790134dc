"""Where a process computes features: its device, its share, its precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pytorch_lightning import Trainer

from usl_lightning.compute.distributed import world_size
from usl_lightning.data.sampling import process_range


class Place:
    """One process of a trainer, or this process alone.

    Args:
        trainer: whose processes share the images; None: there is no other process.
        device: without a trainer, the device to compute on.

    Attributes:
        device: of this process.
        rank: which of the processes it is.
        precision: of the trainer's steps, Lightning's name of it.
    """

    def __init__(self, trainer: Trainer | None = None, device: torch.device | str = "cpu") -> None:
        self._trainer = trainer
        self.device = torch.device(device) if trainer is None else trainer.strategy.root_device
        self.rank: int = 0 if trainer is None else trainer.global_rank
        self.precision = "32-true" if trainer is None else str(trainer.precision)

    def share(self, n: int) -> range:
        """This process's share of n images."""
        return process_range(n, self.rank, world_size())

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast, as the trainer has it for its own steps."""
        return nullcontext() if self._trainer is None else self._trainer.precision_plugin.forward_context()
