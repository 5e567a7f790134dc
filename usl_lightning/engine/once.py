"""The checkpoint of what is learned at once, not in steps."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from usl_lightning.engine.checkpoint_files import IDENTITY, AtomicCheckpointIO, CheckpointFolder


def save_learned(trainer: Trainer, model: LightningModule, path: Path, identity: Mapping[str, Any]) -> None:
    """Write the one checkpoint of a run that takes no steps, as Lightning reads them.

    Args:
        trainer: tells which process writes; all must call it.
        model: what was learned.
        path: `checkpoints/` of the stage's folder.
        identity: what a run must share to be looked at with it.

    Raises:
        UslError: the disk is full or the folder cannot be written.
    """
    if trainer.is_global_zero:
        checkpoint: dict[str, Any] = {
            "pytorch-lightning_version": version("pytorch-lightning"),
            "epoch": 0,
            "global_step": 0,
            "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
            IDENTITY: dict(identity),
        }
        model.on_save_checkpoint(checkpoint)
        path.mkdir(exist_ok=True)
        folder = CheckpointFolder(path)
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder.file(0))
        folder.tidy(folder.file(0))
    trainer.strategy.barrier()
