"""What a run writes down while it goes, and what it shows."""

import logging
import netrc
import os
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

from usl_lightning.data.batch import Batch
from usl_lightning.errors import UslError
from usl_lightning.files import write_text
from usl_lightning.launch import is_main_process

HEADER = "step,name,value\n"

FAREWELL = 60.0
"""Seconds that a finished run waits for W&B to take what is not sent yet; it is kept in the run's folder."""


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


class MetricsCSV(Logger):
    """Every metric as a row `step,name,value`, flushed as it comes: a kill loses nothing, a resume goes on.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

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
        rows = self.path.read_text().splitlines()[1:] if step and self.path.exists() else []
        kept = [row for row in rows if row.count(",") == 2 and int(row.split(",", 1)[0]) < step]
        write_text(self.path, HEADER + "".join(f"{row}\n" for row in kept))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row a metric.

        Raises:
            UslError: the disk is full.
        """
        rows = [f"{step or 0},{name},{value:.8g}\n" for name, value in metrics.items() if name != "epoch"]
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(rows))
        except OSError as error:
            raise UslError(
                f"{self.path}: cannot be written ({error.strerror}); free some space, then "
                "continue with --ckpt_path last"
            ) from error


class Progress(Callback):
    """A bar with the time left on a terminal; elsewhere a line at every tenth of the way.

    Args:
        label: what is running.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._bar: tqdm[Any] | None = None
        self._tenth = -1
        self._first, self._begun = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start at the step the run starts from, and drop what was logged after it."""
        self._first, self._begun = trainer.global_step, time.monotonic()
        _rewind(trainer)
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(
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
                self._bar.set_postfix_str(_shown(trainer))
        elif (tenth := 10 * step // total) != self._tenth:
            self._tenth = tenth
            left = (time.monotonic() - self._begun) / max(1, step - self._first) * (total - step)
            print(
                f"{self.label}: step {step}/{total}, {left:.0f} s left  {_shown(trainer)}",
                file=sys.stderr,
                flush=True,
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run killed while it was tested is tested again, without training in between."""
        _rewind(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A pass over the images has a bar too."""
        if trainer.is_global_zero:
            total = sum(int(batches) for batches in trainer.num_predict_batches)
            self._bar = tqdm(desc=f"{self.label}: features", total=total, unit="batch", leave=False, disable=None)

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


def _shown(trainer: Trainer) -> str:
    metrics = {name: value for name, value in trainer.logged_metrics.items() if name != "epoch"}
    return " ".join(f"{name}={float(value):.3g}" for name, value in list(metrics.items())[:6])


def _logged_in() -> bool:
    """Whether wandb would find a key, or is told to need none; asked without the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = urlparse(_server()).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _reachable() -> bool:
    """Whether the server answers at all, through whatever proxy the environment names."""
    try:
        urllib.request.urlopen(_server(), timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it does
    except (OSError, ValueError):
        return False
    return True


def wandb_logger(mode: str, run_dir: Path, config: dict[str, Any]) -> Logger:
    """A Weights & Biases logger: a chain's stages share a group, the stage is the job type, a resume goes on.

    If the server does not answer, the run is logged offline: no run fails because its diary cannot be sent.

    Args:
        mode: `online` or `offline`.
        run_dir: `runs/<run>/<stage>`; names the group, the job type and, with them, the run.
        config: everything resolved.

    Raises:
        UslError: online without being logged in.
    """
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    if mode == "offline":
        os.environ["WANDB_MODE"] = "offline"
    elif not _logged_in():
        raise UslError("--wandb: not logged in; run `wandb login` or set WANDB_API_KEY, or use --wandb offline")
    elif is_main_process() and not _reachable():
        mode, os.environ["WANDB_MODE"] = "offline", "offline"
        print(
            f"usl: {_server()} cannot be reached: logged offline; `wandb sync` sends {run_dir}/wandb", file=sys.stderr
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    run_id = run_dir / ".wandb_id"
    if not run_id.exists():
        import uuid

        run_id.write_text(uuid.uuid4().hex[:12])
    stage, group = run_dir.name, run_dir.resolve().parent.name
    return WandbLogger(
        project="usl-lightning",
        name=f"{group}/{stage}",
        group=group,
        job_type=stage,
        save_dir=str(run_dir),
        id=run_id.read_text(),
        resume="allow",
        config=config,
        offline=mode == "offline",
        settings=wandb.Settings(finish_timeout=FAREWELL),
    )
