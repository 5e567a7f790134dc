"""Checkpoints that are whole or not there, and that only continue the run they were made by."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from usl_lightning.agreement import Agreement, fewest
from usl_lightning.errors import UslError
from usl_lightning.files import atomic_path, flush_folder
from usl_lightning.identity import differences, names_a_file
from usl_lightning.interrupt import Interruption
from usl_lightning.launch import is_main_process
from usl_lightning.logs import MetricsCSV
from usl_lightning.models.encoder import read_checkpoint
from usl_lightning.processes import says_lost
from usl_lightning.resumed_validation import begin_with_validation, forget_validation

IDENTITY = "usl_identity"
"""Key of a checkpoint under which the run's identity fields are stored."""

ROW = "usl_row"
"""Key under which the metrics of its step are, where metrics.csv may have lost them or holds more."""

UNVALIDATED = "usl_unvalidated"
"""Key that tells whether the step is yet to be validated: the run was stopped amid that."""


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


class Checkpoints(Callback):
    """Keeps the newest two checkpoints of a run; `last.ckpt` names the newer one.

    Args:
        folder: where they go; the command line sets it to `checkpoints/` of the stage's folder.
        every_minutes: time between checkpoints.
        every_steps: a fixed number of steps between them instead.
        identity: what a run must share to continue from them.
        interruption: signals that any process may get: the run is saved when its step is done; then it stops. A
            validation is broken off; a resume begins with it.
    """

    def __init__(
        self,
        folder: Path,
        every_minutes: float = 5.0,
        every_steps: int | None = None,
        identity: Mapping[str, Any] | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        self.folder, self.every_minutes, self.every_steps = folder, every_minutes, every_steps
        self.identity = dict(identity or {})
        self.interruption = interruption or Interruption()
        self._step, self._saved_step, self._saved_time = -1, -1, 0.0
        self._due, self._stop = False, False
        self._row: dict[str, float] = {}
        self._unvalidated = False
        self._agreement, self._amid = Agreement(), Agreement()
        self._looked, self._together = 0, 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What was, and was not, noted of the step that was saved."""
        self._row, self._unvalidated = checkpoint.get(ROW, {}), checkpoint.get(UNVALIDATED, False)
        if self._unvalidated:
            begin_with_validation(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step a resumed run starts from is saved already; what a killed run left half written goes."""
        self._step = self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        self._agreement = Agreement(trainer.global_step)
        self.interruption.deferred = True
        if self._unvalidated:
            self._saved_step, self._due = -1, trainer.global_step != trainer.max_steps
            forget_validation(trainer, again=_validates_after(trainer))
        for metrics in _metrics(trainer):
            if self._unvalidated:
                metrics.rewind(trainer.global_step - 1)
            metrics.complete(self._row, trainer.global_step - 1)
        self._row, self._unvalidated = {}, False
        if trainer.is_global_zero:
            for torn in self.folder.glob(".step=*.tmp"):
                torn.unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here, where the metrics of the step that was saved are noted too."""
        if self._stop:
            self._leave(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; called after every state change of the step, all of which precede it."""
        step = trainer.global_step
        if step == self._step:
            return  # amid accumulation: the gradients so far would be lost
        self._step = step
        late: int = self.every_steps is None and time.monotonic() - self._saved_time >= 60 * self.every_minutes
        asked = self.interruption.signum or 0
        late, asked = self._agreement.most(step, late, asked, device=pl_module.device)
        self._heed(asked)
        due = bool(late) or self._stop or (self.every_steps is not None and step % self.every_steps == 0)
        self._due = due and step != trainer.max_steps  # the last state is saved when its metrics are noted
        if self._due and not _validates_after(trainer):
            self._row = _yet_to_be_noted(trainer)
            self._save(trainer)
            self._row = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the main process leaves as soon as it is asked to: what it has done is what is saved."""
        if not self.interruption.deferred or trainer.fit_loop._should_accumulate():
            return  # not amid training; amid accumulation
        self._unvalidated = True
        for metrics in _metrics(trainer):
            self._row = metrics.noted(trainer.global_step - 1)
        self._looked, self._amid = 0, Agreement()
        self._together = fewest(sum(int(batches) for batches in trainer.num_val_batches), device=pl_module.device)
        if self._stop:
            self._break_off(trainer)
        self.interruption.breaks = trainer.is_global_zero
        if self.interruption.breaks and self.interruption.signum is not None:
            raise KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop here if another process was asked to; all come here so many times, some once more."""
        if self._unvalidated and self._looked < self._together:
            self._heed(*self._amid.most(self._looked, self.interruption.signum or 0, device=pl_module.device))
            if self._stop:
                self._break_off(trainer)
        self._looked += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint due at a step that is validated waits for it: a resume does not validate that step again."""
        self.interruption.breaks = False
        if self._unvalidated:
            self._row, self._unvalidated = {}, False
            self._heed(*Agreement().most(1, self.interruption.signum or 0, device=pl_module.device))
            self._due |= self._stop and trainer.global_step != trainer.max_steps
        if self._due:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last state is always saved."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        self.interruption.deferred = False
        if not self._stop:  # a signal since the last exchange
            self._heed(*Agreement().most(1, self.interruption.signum or 0, device=pl_module.device))
        if self._stop:
            self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what a validation was to judge; elsewhere nothing is saved any more, and signals need not wait."""
        asked = isinstance(exception, KeyboardInterrupt)
        if self._unvalidated and trainer.is_global_zero and (asked or says_lost(exception)):
            try:
                self._save(trainer, alone=True)
            except UslError as error:
                print(f"usl: {error}", file=sys.stderr)
            self.interruption.requeue()
        self.interruption.deferred = self.interruption.breaks = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say what the run is."""
        checkpoint |= {IDENTITY: self.identity, ROW: self._row, UNVALIDATED: self._unvalidated}

    def _heed(self, asked: int) -> None:
        """Stop after this step if any process was asked to, by the signal of that number."""
        if asked:
            self._stop, self.interruption.signum = True, asked

    def _break_off(self, trainer: Trainer) -> None:
        """Save what the validation was to judge, on all processes, and end the run."""
        self.interruption.breaks = False
        self._save(trainer)
        self._unvalidated = False
        self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        """End the run; a launcher ends all processes as soon as one has gone, so first what remains to be done."""
        if trainer.is_global_zero:
            self.interruption.requeue()
        trainer.strategy.barrier()
        raise KeyboardInterrupt

    def _save(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Write a checkpoint; `alone`: the other processes may be gone, they are not waited for."""
        path = self.folder / f"step={trainer.global_step:08d}.ckpt"
        if alone:
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), path)
        else:
            trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            _point(self.folder / "last.ckpt", path.name)
            # Later steps are of a run that was set back to an earlier checkpoint: they are no longer the newest.
            kept = [old for old in sorted(self.folder.glob("step=*.ckpt")) if old < path][-1:]
            for old in self.folder.glob("step=*.ckpt"):
                if old not in (*kept, path):
                    old.unlink(missing_ok=True)
            if self._unvalidated:
                print(f"usl: validation broken off after step {self._step}; a resume begins with it", file=sys.stderr)
        self._saved_step, self._saved_time, self._due = trainer.global_step, time.monotonic(), False


def _validates_after(trainer: Trainer) -> bool:
    """Whether Lightning validates once this batch is done."""
    every, done = trainer.val_check_batch, trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return trainer.enable_validation and every is not None and done % every == 0


def _metrics(trainer: Trainer) -> list[MetricsCSV]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]


def _yet_to_be_noted(trainer: Trainer) -> dict[str, float]:
    """The metrics that Lightning hands to the loggers once the hooks of this batch are done."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items() if isinstance(value, Tensor | float)}


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(".last.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    flush_folder(link.parent)


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
