"""A run is saved: the states it goes through, and which of Lightning's hooks leads from one to the next."""

import sys
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.interrupt import Interruption
from usl_lightning.base.ranges import Ranged, Ranges, at_least, whole
from usl_lightning.engine.checkpoint_files import IDENTITY, CheckpointFolder
from usl_lightning.engine.logs import MetricsCSV
from usl_lightning.engine.processes import Stopping, says_lost
from usl_lightning.engine.resumed_validation import begin_with_validation, forget_validation, validates_after


def noted(trainer: Trainer) -> dict[str, float]:
    """The metrics of the last step that are in the file."""
    row: dict[str, float] = {}
    for metrics in _files(trainer):
        row = metrics.noted(trainer.global_step - 1)
    return row


def yet_to_be_noted(trainer: Trainer) -> dict[str, float]:
    """Those that Lightning hands to the loggers once the hooks of this batch are done."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items() if isinstance(value, Tensor | float)}


def rows_before(trainer: Trainer) -> int:
    """How many rows the file holds of the steps before the last one, all of which are in it by now."""
    return sum(metrics.count(trainer.global_step - 1) for metrics in _files(trainer))


def note_again(trainer: Trainer, row: dict[str, float], *, alone: bool) -> None:
    """Have the file hold what a checkpoint does of its step: a killed run may have lost some of it.

    Args:
        trainer: its last step is that of the checkpoint.
        row: what the checkpoint holds.
        alone: the file is to hold nothing else of the step: it is about to be validated again.
    """
    for metrics in _files(trainer):
        if alone:
            metrics.rewind(trainer.global_step - 1)
        metrics.complete(row, trainer.global_step - 1)


def _files(trainer: Trainer) -> list[MetricsCSV]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]


class Timetable:
    """Says of each step whether it is to be saved: after so many steps, after so long, or because the run is to stop.

    Args:
        every_minutes: time between two saves.
        every_steps: a fixed number of steps between them instead.

    Attributes:
        step: the one that was done last.
        due: it is to be saved: at once, or when it has been validated. The last of a run never is: it is saved when
            training ends, with all its metrics.
    """

    def __init__(self, every_minutes: float = 5.0, every_steps: int | None = None) -> None:
        self.every_minutes, self.every_steps = every_minutes, every_steps
        self.step, self.due = -1, False
        self._saved, self._time, self._last = -1, 0.0, -1

    def begin(self, step: int, last: int, *, saved: bool) -> None:
        """Start at a step.

        Args:
            step: optimizer steps done.
            last: as many as the run takes.
            saved: there is nothing to be added to what is saved of the step; else it is due.
        """
        self.step, self._last = step, last
        self.saved(step)
        if not saved:
            self._saved, self.due = -1, step != last

    @property
    def is_late(self) -> bool:
        """Whether the time is up, by the clock of this process."""
        return self.every_steps is None and time.monotonic() - self._time >= 60 * self.every_minutes

    def plan(self, step: int, *, now: bool) -> None:
        """Decide whether a step that is done is due.

        Args:
            step: the same on every process.
            now: it is, whatever its number.
        """
        self.step = step
        self.due = (now or (self.every_steps is not None and step % self.every_steps == 0)) and step != self._last

    def saved(self, step: int) -> None:
        """A step is."""
        self._saved, self._time, self.due = step, time.monotonic(), False

    def has(self, step: int) -> bool:
        """Whether a step is the one that was saved last."""
        return step == self._saved


ROW = "usl_row"
"""Key under which the metrics of its step are, where metrics.csv may have lost them or holds more."""

ROWS = "usl_rows"
"""Key under which it is told how many rows metrics.csv held of the steps before."""

UNVALIDATED = "usl_unvalidated"
"""Key that tells whether the step is yet to be validated: the run was stopped amid that."""


class State(Enum):
    """Where a run stands.

        OUTSIDE --load--> RESUMING             if the checkpoint is of a validation that was broken off
        OUTSIDE, RESUMING --train start--> STEPPING
        STEPPING --validation start--> VALIDATING --validation end--> STEPPING
        STEPPING, VALIDATING --batch start--> LEAVING                   if the processes have agreed to stop
        any --train end, exception--> OUTSIDE  VALIDATING: the main process saves first, when it is asked to stop or
                                               another has gone

    Whether the step that was done last is due to be saved is the timetable's to say; whether the run is to stop,
    `Stopping`'s. All processes agree on both, and so pass through the states together.
    """

    OUTSIDE = "nothing is trained, nothing saved; a signal ends the run at once"
    RESUMING = "the same; the step that was read is to be validated before all else"
    STEPPING = "a signal waits until the step is done; a save that is due, also until it is validated, if it is to be"
    VALIDATING = "the step is done, not validated: a signal breaks the validation off, and the step is saved as it is"
    LEAVING = "what there is to save is saved: the run ends"


class Checkpoints(Ranged, Callback):
    """Keeps the newest two checkpoints of a run; `last.ckpt` names the newer one. See `State` for how.

    Args:
        folder: where they go; the command line sets it to `checkpoints/` of the stage's folder.
        every_minutes: time between checkpoints.
        every_steps: a fixed number of steps between them instead.
        identity: what a run must share to continue from them.
        interruption: signals that any process may get: the run is saved when its step is done; then it stops. A
            validation is broken off; a resume begins with it.
    """

    ranges: ClassVar[Ranges] = {"every_minutes": at_least(0, infinite=True), "every_steps": whole(1)}

    def __init__(
        self,
        folder: Path,
        every_minutes: float = 5.0,
        every_steps: int | None = None,
        identity: Mapping[str, Any] | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        self.folder = CheckpointFolder(folder)
        self.identity = dict(identity or {})
        self.interruption = interruption or Interruption()
        self._timetable = Timetable(every_minutes, every_steps)
        self._stopping = Stopping(self.interruption)
        self._state = State.OUTSIDE
        self._resumes = False
        self._row: dict[str, float] = {}  # goes into a checkpoint, or came out of one

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """OUTSIDE, or RESUMING what was not validated."""
        self._resumes, self._row = True, checkpoint.get(ROW, {})
        for metrics in _files(trainer):
            metrics.expect(checkpoint.get(ROWS, 0), checkpoint["global_step"] - 1)
        if checkpoint.get(UNVALIDATED, False):
            self._state = State.RESUMING
            begin_with_validation(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """OUTSIDE; checkpoints of others where those of this run are to be are refused."""
        if trainer.is_global_zero:
            self.folder.recognise(self.identity, resuming=self._resumes)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """STEPPING from a step that is saved already; what a killed run left half written goes."""
        resuming = self._state is State.RESUMING
        self._timetable.begin(trainer.global_step, trainer.max_steps, saved=not resuming)
        self._stopping.begin_steps(trainer.global_step)
        self.interruption.deferred = True
        if resuming:
            forget_validation(trainer, again=validates_after(trainer))
        note_again(trainer, self._row, alone=resuming)
        self._state, self._row = State.STEPPING, {}
        if trainer.is_global_zero:
            self.folder.sweep()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """LEAVING here, where the metrics of the step that was saved are noted too."""
        if self._stopping.agreed:
            self._leave(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; called after every state change of the step, all of which precede it."""
        step = trainer.global_step
        if step == self._timetable.step:
            return  # amid accumulation: the gradients so far would be lost
        late = self._stopping.after_step(step, self._timetable.is_late, device=pl_module.device)
        self._timetable.plan(step, now=late or self._stopping.agreed)
        if self._timetable.due and not validates_after(trainer):
            self._row = yet_to_be_noted(trainer)
            self._save(trainer)
            self._row = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """VALIDATING: the main process leaves as soon as it is asked to; what it has done is what is saved."""
        if self._state is not State.STEPPING or trainer.fit_loop._should_accumulate():
            return  # not amid training; amid accumulation
        self._state, self._row = State.VALIDATING, noted(trainer)
        if self._stopping.agreed:
            self._break_off(trainer)
        self._stopping.begin_batches(sum(int(n) for n in trainer.num_val_batches), device=pl_module.device)
        self.interruption.breaks = trainer.is_global_zero
        if self.interruption.breaks and self.interruption.signum is not None:
            raise KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """LEAVING if another process was asked to stop."""
        if self._state is State.VALIDATING:
            self._stopping.before_batch(device=pl_module.device)
            if self._stopping.agreed:
                self._break_off(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """STEPPING again; a checkpoint that was due waited for this: a resume does not validate the step again."""
        if self._state is State.VALIDATING:
            self.interruption.breaks = False
            self._state, self._row = State.STEPPING, {}
            self._stopping.exchange(device=pl_module.device)
            if self._stopping.agreed:
                self._timetable.plan(trainer.global_step, now=True)
            if self._timetable.due:
                self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """OUTSIDE; the last state is always saved."""
        if not self._timetable.has(trainer.global_step):
            self._save(trainer)
        self._state, self.interruption.deferred = State.OUTSIDE, False
        if not self._stopping.agreed:  # a signal since the last exchange
            self._stopping.exchange(device=pl_module.device)
        if self._stopping.agreed:
            self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """OUTSIDE. What a validation was to judge is saved; elsewhere nothing is, and signals need not wait."""
        stopped = isinstance(exception, KeyboardInterrupt) or says_lost(exception)
        if self._state is State.VALIDATING and trainer.is_global_zero and stopped:
            try:
                self._save(trainer, alone=True)
            except UslError as error:
                print(f"usl: {error}", file=sys.stderr)
            self.interruption.requeue()
        self._state = State.OUTSIDE
        self.interruption.deferred = self.interruption.breaks = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say what the run is."""
        unvalidated = self._state in (State.RESUMING, State.VALIDATING)
        rows = rows_before(trainer)
        checkpoint |= {IDENTITY: self.identity, ROW: self._row, ROWS: rows, UNVALIDATED: unvalidated}

    def _save(self, trainer: Trainer, *, alone: bool = False) -> None:
        """Write a checkpoint; `alone`: the other processes may be gone, they are not waited for."""
        step = trainer.global_step
        self.folder.write(trainer, alone=alone)
        if self._state is State.VALIDATING and trainer.is_global_zero:
            print(f"usl: validation broken off after step {step}; a resume begins with it", file=sys.stderr)
        self._timetable.saved(step)

    def _break_off(self, trainer: Trainer) -> NoReturn:
        """Save what the validation was to judge, on all processes."""
        self.interruption.breaks = False
        self._save(trainer)
        self._leave(trainer)

    def _leave(self, trainer: Trainer) -> NoReturn:
        self._state = State.LEAVING
        self._stopping.leave(trainer)
