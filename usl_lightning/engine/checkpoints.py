"""When a run is saved, and what is to be known of the step that was."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.interrupt import Interruption
from usl_lightning.engine.agreement import Agreement, fewest
from usl_lightning.engine.checkpoint_files import IDENTITY, CheckpointFolder
from usl_lightning.engine.logs import MetricsCSV
from usl_lightning.engine.processes import says_lost
from usl_lightning.engine.resumed_validation import begin_with_validation, forget_validation
from usl_lightning.engine.stopping import Stopping

ROW = "usl_row"
"""Key under which the metrics of its step are, where metrics.csv may have lost them or holds more."""

UNVALIDATED = "usl_unvalidated"
"""Key that tells whether the step is yet to be validated: the run was stopped amid that."""


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
        self.folder, self.every_minutes, self.every_steps = CheckpointFolder(folder), every_minutes, every_steps
        self.identity = dict(identity or {})
        self.interruption = interruption or Interruption()
        self._stopping = Stopping(self.interruption)
        self._step, self._saved_step, self._saved_time = -1, -1, 0.0
        self._due = False
        self._row: dict[str, float] = {}
        self._unvalidated = False
        self._agreement = self._amid = Agreement()
        self._turns = iter(range(0))

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
            self.folder.sweep()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here, where the metrics of the step that was saved are noted too."""
        if self._stopping.agreed:
            self._stopping.leave(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; called after every state change of the step, all of which precede it."""
        step = trainer.global_step
        if step == self._step:
            return  # amid accumulation: the gradients so far would be lost
        self._step = step
        late: int = self.every_steps is None and time.monotonic() - self._saved_time >= 60 * self.every_minutes
        (late,) = self._stopping.agree(self._agreement, step, late, device=pl_module.device)
        due = bool(late) or self._stopping.agreed or (self.every_steps is not None and step % self.every_steps == 0)
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
        if self._stopping.agreed:
            self._break_off(trainer)
        self._amid = Agreement()
        self._turns = iter(range(fewest(sum(int(n) for n in trainer.num_val_batches), device=pl_module.device)))
        self.interruption.breaks = trainer.is_global_zero
        if self.interruption.breaks and self.interruption.signum is not None:
            raise KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop here if another process was asked to."""
        turn = next(self._turns, None)  # some processes have one more, at which the others do not answer
        if self._unvalidated and turn is not None:
            self._stopping.agree(self._amid, turn, device=pl_module.device)
            if self._stopping.agreed:
                self._break_off(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint due at a step that is validated waits for it: a resume does not validate that step again."""
        self.interruption.breaks = False
        if self._unvalidated:
            self._row, self._unvalidated = {}, False
            self._stopping.agree(Agreement(), 1, device=pl_module.device)
            self._due |= self._stopping.agreed and trainer.global_step != trainer.max_steps
        if self._due:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last state is always saved."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        self.interruption.deferred = False
        if not self._stopping.agreed:  # a signal since the last exchange
            self._stopping.agree(Agreement(), 1, device=pl_module.device)
        if self._stopping.agreed:
            self._stopping.leave(trainer)

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

    def _break_off(self, trainer: Trainer) -> None:
        """Save what the validation was to judge, on all processes, and end the run."""
        self.interruption.breaks = False
        self._save(trainer)
        self._unvalidated = False
        self._stopping.leave(trainer)

    def _save(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Write a checkpoint; `alone`: the other processes may be gone, they are not waited for."""
        path = self.folder.file(trainer.global_step)
        if alone:
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(), path)
        else:
            trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            self.folder.tidy(path)
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
