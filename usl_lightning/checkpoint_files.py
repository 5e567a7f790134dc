"""Files of checkpoints: whole or not there, two of a run at most, and none continued that is of another run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from usl_lightning.errors import UslError
from usl_lightning.files import atomic_path, flush_folder
from usl_lightning.identity import differences, names_a_file
from usl_lightning.launch import is_main_process
from usl_lightning.models.encoder import read_checkpoint

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


def _shapes_model(key: str) -> bool:
    return key.startswith("model.") and not names_a_file(key)


def check_resume(path: Path, identity: Mapping[str, Any], *, extend: bool = False, training: bool = True) -> None:
    """Refuse to continue or evaluate a checkpoint with another model than it holds.

    Args:
        path: the checkpoint.
        identity: fields of the present configuration.
        extend: allow another trainer.max_steps.
        training: compare everything; otherwise the model alone.

    Raises:
        UslError: damaged, not ours, or names what differs.
    """
    stored = read_checkpoint(path).get(IDENTITY)
    if not isinstance(stored, dict):
        raise UslError(f"{path}: not a checkpoint of `usl fit`; to start from published weights see model.pretrained")
    old, new = dict(stored), dict(identity)
    if old.get("model.class_path") != new.get("model.class_path"):
        raise UslError(
            f"{path}: holds a {old.get('model.class_path')}, this configuration is a {new.get('model.class_path')}; "
            "to start from its encoder use --model.init_from"
        )
    if extend:
        old.pop("trainer.max_steps", None), new.pop("trainer.max_steps", None)
    if not training:
        old, new = ({k: v for k, v in fields.items() if _shapes_model(k)} for fields in (old, new))
    changed = differences(old, new)
    if changed:
        raise UslError(f"{path}: cannot be continued, it is of another run: {'; '.join(changed)}")


def newest_whole(folder: Path) -> Path:
    """The newest checkpoint of a stage that can be read to its last bit; says so if it is not the last one.

    Args:
        folder: `checkpoints/` of the stage.

    Raises:
        UslError: none can.
    """
    last = folder / "last.ckpt"
    newest = last.resolve()
    earlier = sorted((path for path in folder.glob("step=*.ckpt") if path.name < newest.name), reverse=True)
    damage = ""
    for path in (last, *earlier):
        try:
            read_checkpoint(path)
        except UslError as error:
            damage = damage or str(error)
            continue
        if damage and is_main_process():
            print(f"usl: {damage}; continuing from {path}, the one before", file=sys.stderr)
        return path
    raise UslError(f"{damage}; there is no whole one before it: start afresh in another folder")
