"""Lightning callbacks that do a run some harm at an exact point of it, for the tests that continue it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class Kill(Callback):
    """Sends a signal.

    Args:
        step: when that many optimizer steps are done …
        moment: … and the next batch begins (`batch`), or one micro-batch later (`micro`), a validation batch
            ends (`validation`), or all have (`measure`), the checkpoint of that step is half written (`write`) or
            whole but not yet `last.ckpt` (`rename`), a batch of the final test ends (`testing`), or all of it does
            (`test`), or features for a selection begin (`select`).
        by: name of the signal.
        parent: send it to the process that started this one, and wait to be told to stop.
        rank: the process that does, of several that train together; by default each.
    """

    def __init__(
        self, step: int, moment: str = "batch", by: str = "SIGKILL", parent: bool = False, rank: int | None = None
    ) -> None:
        self.step, self.moment, self.by, self.parent, self.rank = step, moment, by, parent, rank

    def _reached(self, trainer: Trainer, moment: str) -> bool:
        here = self.rank in (None, trainer.global_rank)
        return here and (trainer.global_step, moment) == (self.step, self.moment)

    def _at(self, trainer: Trainer, moment: str) -> None:
        if self._reached(trainer, moment):
            self._send()

    def _send(self) -> None:
        if not self.parent:
            os.kill(os.getpid(), getattr(signal, self.by))
            return
        told = (signal.SIGTERM, signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_BLOCK, told)  # the answer may be there at once
        os.kill(os.getppid(), getattr(signal, self.by))
        while not signal.sigpending():
            time.sleep(0.01)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, told)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two batches."""
        self._at(trainer, "micro" if batch_idx % trainer.accumulate_grad_batches else "batch")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Amid a validation."""
        self._at(trainer, "validation")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the batches told is about to be put together."""
        self._at(trainer, "measure")

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Amid the final test."""
        self._at(trainer, "testing")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The metrics are noted, the stage is not yet complete."""
        self._at(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Amid a selection."""
        self._at(trainer, "select")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What comes next is the writing."""
        if self._reached(trainer, "write"):
            torch.save = self._write_half
        if self._reached(trainer, "rename"):
            os.replace = self._replace

    def _write_half(self, checkpoint: dict[str, Any], file: Any, save: Any = torch.save) -> None:
        save(checkpoint, file)
        file.truncate(file.tell() // 2)
        self._send()

    def _replace(self, source: Any, target: Any, replace: Any = os.replace) -> None:
        replace(source, target)
        self._send()


class Slow(Callback):
    """Makes every batch of a validation take longer.

    Args:
        seconds: so much.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_validation_batch_end(self, *_: Any) -> None:
        """As large images would."""
        time.sleep(self.seconds)


class Busy(Callback):
    """Keeps one process from the next exchange.

    Args:
        step: when that many steps are done …
        seconds: … for so long.
        rank: the process.
    """

    def __init__(self, step: int, seconds: float, rank: int) -> None:
        self.step, self.seconds, self.rank = step, seconds, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """As a slow disk would."""
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            time.sleep(self.seconds)


class Enough(Callback):
    """Ends training after `step` steps, as early stopping does, or by lowering their number.

    Args:
        step: the last.
        lowers: the number of steps.
        waits: so many seconds instead.
        raises: StopIteration, before each further step.
    """

    def __init__(self, step: int, lowers: bool = False, waits: float = 0.0, raises: bool = False) -> None:
        self.step, self.lowers, self.waits, self.raises = step, lowers, waits, raises

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Raise what ends Lightning's epoch."""
        if self.raises and trainer.global_step >= self.step:
            raise StopIteration

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ask Lightning to stop."""
        if trainer.global_step == self.step and not self.raises:
            time.sleep(self.waits)
            trainer.should_stop = not self.waits
            if self.lowers:
                trainer.fit_loop.epoch_loop.max_steps = self.step


class ReadOnly(Callback):
    """Takes the right to write away from a folder and the folders in it, when `step` steps are done."""

    def __init__(self, step: int, folder: str) -> None:
        self.step, self.folder = step, Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """As a file server does that has lost its disk."""
        if trainer.global_step == self.step:
            for folder in (self.folder, *(path for path in self.folder.iterdir() if path.is_dir())):
                folder.chmod(0o555)


class ClockJump(Callback):
    """Sets the clock of its process by a day at every step, back and forth."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """As a time server would: what measures spans is not to be disturbed."""
        jump = 86400.0 * (1 - 2 * (batch_idx % 2))
        time.time = lambda now=time.time: now() + 2 * jump


class Drift(Callback):
    """Changes one bit of a weight of process 1 before the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """As a defective memory would."""
        if (trainer.global_step, trainer.global_rank) == (self.step, 1):
            weight = next(pl_module.encoder.parameters())
            weight.data.view(-1).view(torch.int32)[0] ^= 1
