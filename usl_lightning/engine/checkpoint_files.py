"""Files of checkpoints: whole or not there, two of a run at most, and none continued that is of another run."""

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer

from usl_lightning.base.atomic import atomic_path, check_file, flush_folder
from usl_lightning.base.classes import moved
from usl_lightning.base.errors import UslError

IDENTITY = "usl_identity"
"""Key of a checkpoint under which the run's identity fields are stored."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to disk, renames it: a full disk or a kill spoils nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint file.

        Raises:
            UslError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        write_checkpoint(checkpoint, path, "continue with --ckpt_path last")


def write_checkpoint(checkpoint: Mapping[str, Any], path: Any, then: str) -> None:
    """Write a checkpoint file whole, or none.

    Args:
        checkpoint: what it holds.
        path: of the file.
        then: what to do once there is space again.

    Raises:
        UslError: the disk is full or the folder cannot be written; what was there is untouched.
    """
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)  # given a path, it would write the temporary name into the file
    except RuntimeError as error:  # torch's zip writer reports a full disk so
        reason = getattr(error.__context__, "strerror", None) or error
        raise UslError(f"{path}: the checkpoint cannot be written ({reason}); free some space, then {then}") from error


_NAME = re.compile(r"step=\d{8,}\.ckpt")


def _identity_in(path: Path) -> Mapping[str, Any] | None:
    """The identity in a checkpoint, of which no tensor is read; None if it is none of ours, or cannot be read."""
    try:
        check_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[IDENTITY]
    except Exception:
        return None
    return moved(found) if isinstance(found, dict) else None


def _same_but_for_its_length(stored: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Parameters that only one of the two has may be of another version of the package."""
    common = (stored.keys() & identity.keys()) - {"trainer.max_steps"}
    return all(stored[key] == identity[key] for key in common)


class CheckpointFolder:
    """`checkpoints/` of a stage: the newest two, `step=<8 digits>.ckpt`, and `last.ckpt`, which names the newer one.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own: set[str] | None = None  # the run's; None: all that are called so

    def file(self, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self.path / f"step={step:08d}.ckpt"

    def recognise(self, identity: Mapping[str, Any], *, resuming: bool) -> None:
        """Tell the run's own files from others, which are neither deleted nor overwritten.

        Args:
            identity: of the run.
            resuming: it goes on; a file that cannot be read may then be one of its own that was damaged.

        Raises:
            UslError: a file of the name of a checkpoint is of another run, or of none.
        """
        self._own = set()
        for path in self._named_as_ours():
            stored = _identity_in(path)
            if stored is not None and _same_but_for_its_length(stored, identity):
                self._own.add(path.name)
            elif stored is not None or not resuming:
                raise UslError(f"{path}: is not of this run; move it elsewhere, or choose another --run_dir")

    def _named_as_ours(self) -> list[Path]:
        return sorted(path for path in self.path.glob("step=*.ckpt") if _NAME.fullmatch(path.name))

    def _is_own(self, path: Path) -> bool:
        return self._own is None or path.name in self._own

    def write(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Save the state of all processes, as the newest.

        Args:
            trainer: of a run.
            alone: on the main process only: the others may be gone, and are not waited for.
        """
        path = self.file(trainer.global_step)
        if trainer.is_global_zero and path.exists() and not self._is_own(path):
            path.rename(path.with_name(f"{path.name}.unreadable"))  # as nothing else is; see `recognise`
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
        if self._own is not None:
            self._own.add(newest.name)
        ours = [old for old in self._named_as_ours() if self._is_own(old)]
        # Later steps are of a run that was set back to an earlier checkpoint: they are no longer the newest.
        kept = [old for old in ours if old < newest][-1:]
        for old in ours:
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
