"""What a run writes down while it goes, and what it shows."""

import errno
import logging
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

from usl_lightning.base.atomic import check_file, read_file
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.base.machine import is_main_process
from usl_lightning.base.progress import Bar, fitting, progress
from usl_lightning.data.batch import Batch

log = logging.getLogger(__name__)

HEADER = "step,name,value\n"

_ROW = re.compile(r"(\d{1,18}),([^,\ufffd]+),([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf)|nan)", re.ASCII)
"""A number as `format` writes it with eight digits."""


class _Said(logging.Handler):
    """Messages of the package on stderr, each a line; a progress bar makes room for it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            mark = "warning: " if record.levelno >= logging.WARNING else ""
            tqdm.write(mark + record.getMessage(), file=sys.stderr)
        except Exception:
            self.handleError(record)


def show_messages() -> None:
    """From now on the main process says what the package logs: what it decided, found and measured."""
    log = logging.getLogger("usl_lightning")
    if is_main_process() and not any(isinstance(handler, _Said) for handler in log.handlers):
        log.addHandler(_Said())
        log.setLevel(logging.INFO)


def _lines(count: int, kind: str) -> str:
    return f"a {kind} is" if count == 1 else f"{count} {kind}s are"


class MetricsCSV(Logger):
    """Every metric as a row `step,name,value`, flushed as it comes: a kill loses nothing, a resume goes on.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._expected, self._lost = (0, 0), 0  # rows, of the steps below; those that are gone
        self._waiting: list[str] = []  # rows that could not be written

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The parameters are in config.yaml."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows of `step` and later: they are about to be made again."""
        rows = self._whole(step) if step else []
        self._replace(row for at, _, row in rows if at < step)

    @rank_zero_only
    def complete(self, metrics: dict[str, float], step: int) -> None:
        """Append those of a step's rows that are not there."""
        rows = self._whole(step + 1) if step >= 0 else []
        there = {name for at, name, _ in rows if at == step}
        self.log_metrics({name: value for name, value in metrics.items() if name not in there}, step)

    def count(self, before: int) -> int:
        """How many rows are of steps below `before`, or were before they were lost: what a whole file would hold."""
        return self._lost + sum(at < before for at, *_ in self._rows()[0])

    def expect(self, rows: int, before: int) -> None:
        """Say it, when the file is next made ready to go on, if it holds fewer rows of steps below `before`."""
        self._expected = (rows, before)

    def _whole(self, steps: int) -> list[tuple[int, str, str]]:
        """The rows, after the file is whole again if it was not, which is said: a run goes on without it.

        Args:
            steps: of the run, from 1, that it is to tell of.
        """
        rows, damaged, cut = self._rows()
        (expected, before), self._expected = self._expected, (0, 0)
        self._lost += max(0, expected - sum(at < before for at, *_ in rows))
        missing = not self.path.exists() or self.path.stat().st_size == 0
        if missing:
            log.warning("%s: gone, or empty; what it held of %d steps is lost, nothing else", self.path, steps)
        elif damaged:
            log.warning("%s: %s left out, nothing else is lost", self.path, _lines(damaged, "damaged line"))
        if expected and not missing and (gone := self._lost - damaged) > 0:
            log.warning("%s: %s gone from it, nothing else is lost", self.path, _lines(gone, "row"))
        if damaged or cut or missing:
            self._replace(row for *_, row in rows)
        return rows

    def _replace(self, rows: Iterable[str]) -> None:
        write_text(self.path, HEADER + "".join(f"{row}\n" for row in rows))
        self._waiting = []

    def values(self, name: str, before: int) -> list[tuple[int, float]]:
        """(step, value) of each row of a metric whose step is below `before`."""
        return [
            (at, float(row.rpartition(",")[2])) for at, each, row in self._rows()[0] if each == name and at < before
        ]

    def noted(self, step: int) -> dict[str, float]:
        """The rows of one step."""
        return {name: float(row.rpartition(",")[2]) for at, name, row in self._rows()[0] if at == step}

    def _rows(self) -> tuple[list[tuple[int, str, str]], int, bool]:
        """Step, name and text of each row, the damaged lines that are none, and whether the last was cut short."""
        try:
            text = read_file(self.path).decode("utf-8", "replace").replace("\r\n", "\n")  # saved by an editor
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise UslError(f"{self.path}: cannot be read ({error.strerror}); move it elsewhere") from error
        *lines, rest = text.removeprefix(HEADER).split("\n")
        found = [match for line in lines if (match := _ROW.fullmatch(line))]
        damaged = len(lines) - len(found)
        found += [match for row in self._waiting if (match := _ROW.fullmatch(row.rstrip("\n")))]
        return [(int(row[1]), row[2], row[0]) for row in found], damaged, bool(rest)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row a metric; those that do not fit on the disk wait for the next, the run does not."""
        rows = [f"{step or 0},{name},{value:.8g}\n" for name, value in metrics.items() if name != "epoch"]
        if not rows:
            return  # the file would be there without its header
        failed, self._waiting = bool(self._waiting), self._waiting + rows
        try:
            if self.path.exists():
                check_file(self.path)
            with open(self.path, "ab", buffering=0) as file:
                end = file.tell()
                written = file.write(text := "".join(self._waiting).encode())
                if written < len(text):
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._waiting = []
        except OSError as error:
            if not failed:
                log.warning("%s: cannot be written (%s); the run goes on, its rows wait", self.path, error.strerror)


class Progress(Callback):
    """A bar with the time left on a terminal; elsewhere a line at every tenth of the way.

    Args:
        label: what is running.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._bar: Bar | None = None
        self._tenth = -1
        self._first, self._begun = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the step the run starts from, and drop what was logged after it."""
        self._first, self._begun = trainer.global_step, time.monotonic()
        _rewind(trainer)
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = Bar(
                desc=self.label,
                total=trainer.max_steps,
                initial=trainer.global_step,
                unit="step",
                dynamic_ncols=True,
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; the metrics shown are the last logged ones, so that the device is not waited for."""
        if not trainer.is_global_zero:
            return
        step, total = trainer.global_step, trainer.max_steps
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._bar.set_postfix_str(fitting(self._bar, _shown(trainer)))
        elif (tenth := 10 * step // total) != self._tenth:
            self._tenth = tenth
            left = (time.monotonic() - self._begun) / max(1, step - self._first) * (total - step)
            print(
                f"{self.label}: step {step}/{total}, {left:.0f} s left  {' '.join(_shown(trainer))}",
                file=sys.stderr,
                flush=True,
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run killed while it was tested is tested again, without training in between."""
        _rewind(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A pass over the images has a bar too; a selection, one "batch", has bars of its own."""
        total = sum(int(batches) for batches in trainer.num_predict_batches)
        if trainer.is_global_zero and total > 1:
            self._bar = progress(f"{self.label}: images", total, "batch")

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """One more batch of images is done."""
        if self._bar is not None:
            self._bar.update()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar of a pass goes."""
        self._close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last state of the bar standing."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do not write the error into the bar's line."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Pace(Callback):
    """Logs the learning rate of the steps that are logged, and how many images a second were trained on.

    The speed goes into a file of its own: `metrics.csv` holds what a resumed run repeats to the last digit.

    Args:
        path: the file, of the form of `metrics.csv`.
    """

    def __init__(self, path: Path) -> None:
        self._file = MetricsCSV(path)
        self._images, self._since, self._pause = 0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what was noted after the step the run starts from."""
        self._file.rewind(trainer.global_step)
        self._images, self._since = 0, time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the learning rate that this step is about to use."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the images a second of all processes since the last note; validations do not count."""
        self._images += len(batch) if isinstance(batch, Batch) else sum(len(part) for part in batch)
        if trainer.global_step % trainer.log_every_n_steps or (batch_idx + 1) % trainer.accumulate_grad_batches:  # type: ignore[attr-defined]
            return
        now = time.monotonic()
        speed = {"images_per_second": self._images * trainer.world_size / max(now - self._since, 1e-9)}
        self._images, self._since = 0, now
        for logger in (self._file, *(each for each in trainer.loggers if not isinstance(each, MetricsCSV))):
            logger.log_metrics(speed, trainer.global_step - 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self._since += time.monotonic() - self._pause


def _rewind(trainer: Trainer) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            logger.rewind(trainer.global_step)


def _shown(trainer: Trainer) -> list[str]:
    metrics = {name: value for name, value in trainer.logged_metrics.items() if name != "epoch"}
    return [f"{name}={float(value):.3g}" for name, value in list(metrics.items())[:6]]
