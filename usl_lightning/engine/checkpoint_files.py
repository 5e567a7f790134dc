"""Files of checkpoints: whole or not there, two of a run at most, and none continued that is of another run."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import atomic_path, flush_folder

IDENTITY = "usl_identity"
"""Key of a checkpoint under which the run's identity fields are stored."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to disk, renames it: a full disk or a kill spoils nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint file.

        Raises:
            UslError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)  # given a path, it would write the temporary name into the file
        except RuntimeError as error:  # torch's zip writer reports a full disk so
            raise UslError(
                f"{path}: the checkpoint cannot be written ({error}); free some space, then "
                "continue with --ckpt_path last"
            ) from error


class CheckpointFolder:
    """`checkpoints/` of a stage: the newest two, `step=<8 digits>.ckpt`, and `last.ckpt`, which names the newer one.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self.path / f"step={step:08d}.ckpt"

    def write(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Save the state of all processes, as the newest.

        Args:
            trainer: of a run.
            alone: on the main process only: the others may be gone, and are not waited for.
        """
        path = self.file(trainer.global_step)
        if alone:
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), path)
        else:
            trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            self.tidy(path)

    def tidy(self, newest: Path) -> None:
        """Have `last.ckpt` name what has just been written, and keep one other."""
        link = self.path / ".last.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(newest.name)
        link.replace(self.path / "last.ckpt")
        flush_folder(self.path)
        # Later steps are of a run that was set back to an earlier checkpoint: they are no longer the newest.
        kept = [old for old in sorted(self.path.glob("step=*.ckpt")) if old < newest][-1:]
        for old in self.path.glob("step=*.ckpt"):
            if old not in (*kept, newest):
                old.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed run has left half written."""
        for torn in self.path.glob(".step=*.tmp"):
            torn.unlink(missing_ok=True)


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
