"""Checkpoints that are whole or not there, and that only continue the run they were made by."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from usl_lightning.distributed import world_size
from usl_lightning.errors import UslError
from usl_lightning.files import atomic_path
from usl_lightning.identity import differences, names_a_file
from usl_lightning.interrupt import Interruption
from usl_lightning.launch import is_main_process
from usl_lightning.logs import MetricsCSV
from usl_lightning.models.encoder import read_checkpoint

IDENTITY = "usl_identity"
"""Key of a checkpoint under which the run's identity fields are stored."""

ROW = "usl_row"
"""Key under which the metrics of its step are, where they were yet to be noted in metrics.csv."""


PATIENCE = 5.0
"""Seconds that a signal waits for a validation."""


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
        interruption: signals that any process may get: the run is saved when its step, and a validation that
            follows it, are done; then it stops.
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
        self._agreement = Agreement()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A kill right after the save may have lost the metrics of its step."""
        self._row = checkpoint.get(ROW, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step a resumed run starts from is saved already; what a killed run left half written goes."""
        self._step = self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        self._agreement = Agreement(trainer.global_step)
        self.interruption.deferred = True
        self.interruption.install()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.complete(self._row, trainer.global_step - 1)
        self._row = {}
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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint due at a step that is validated waits for it: a resume does not validate that step again."""
        if self.interruption.deferred:
            asked = Agreement().most(1, self.interruption.signum or 0, device=pl_module.device)[0]
            self._heed(asked)
            self._due |= bool(asked) and trainer.global_step != trainer.max_steps
        if self._due:
            self._save(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A signal does not wait for a long validation; a process that leaves alone ends the others."""
        waited = self.interruption.waited()
        if self.interruption.deferred and waited is not None and waited > PATIENCE:
            print(f"usl: validation is left; a resume repeats it, from step {self._saved_step} on", file=sys.stderr)
            raise KeyboardInterrupt

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
        """Nothing is saved any more: signals need not wait."""
        self.interruption.deferred = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say what the run is."""
        checkpoint[IDENTITY], checkpoint[ROW] = self.identity, self._row

    def _heed(self, asked: int) -> None:
        """Stop after this step if any process was asked to, by the signal of that number."""
        if asked:
            self._stop, self.interruption.signum = True, asked

    def _leave(self, trainer: Trainer) -> None:
        """End the run; a launcher ends all processes as soon as one has gone, so first what remains to be done."""
        if trainer.is_global_zero:
            self.interruption.requeue()
        trainer.strategy.barrier()
        raise KeyboardInterrupt

    def _save(self, trainer: Trainer) -> None:
        path = self.folder / f"step={trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            _point(self.folder / "last.ckpt", path.name)
            # Later steps are of a run that was set back to an earlier checkpoint: they are no longer the newest.
            kept = [old for old in sorted(self.folder.glob("step=*.ckpt")) if old < path][-1:]
            for old in self.folder.glob("step=*.ckpt"):
                if old not in (*kept, path):
                    old.unlink(missing_ok=True)
        self._saved_step, self._saved_time, self._due = trainer.global_step, time.monotonic(), False


class Agreement:
    """Tells every process at the same step what any of them knows, about once a second: they talk no more than that.

    Args:
        step: optimizer steps done so far.
    """

    LONGEST = 50
    """Steps between two exchanges at most, so that steps that become slow are noticed."""

    def __init__(self, step: int = 0) -> None:
        self._next, self._last, self._time = step + 1, step, time.monotonic()

    def most(self, step: int, *values: int, device: torch.device) -> tuple[int, ...]:
        """The largest of each value on any process; zeros between two exchanges.

        Args:
            step: optimizer steps done, the same on every process.
            values: 0 or more.
            device: of the process group.
        """
        if world_size() == 1:
            return values
        if step < self._next:
            return (0,) * len(values)
        now = time.monotonic()
        pace = (now - self._time) / max(1, step - self._last)
        pause = min(self.LONGEST, max(1, int(1 / max(pace, 1e-9))))
        told = torch.tensor([*values, -pause], dtype=torch.long, device=device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        *found, pause = told.tolist()
        self._next, self._last, self._time = step - pause, step, now
        return tuple(found)


def _validates_after(trainer: Trainer) -> bool:
    """Whether Lightning validates once this batch is done; never known in advance if that goes by time."""
    every: float | None = trainer.val_check_batch
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return trainer.enable_validation and every is not None and done % every == 0


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
