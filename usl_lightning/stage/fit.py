"""`usl fit`: train, then measure what came of it."""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback, LambdaCallback, Timer

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import keep_freed_memory
from usl_lightning.engine.logs import MetricsCSV
from usl_lightning.models.encoder import compile_encoders, recompute_encoders
from usl_lightning.stage.fit_at_once import fit_at_once
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.outcome import finish
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.possible import COMPILED, validations_amid
from usl_lightning.stage.test import measure

HEADLINE, LATE = "test_accuracy", 20
"""The figure that many report the best of, and of how many evaluations the median is told instead."""


def fit(
    cli: StageCLI, trainer: Trainer, checkpoint: Path | None, begin: Callable[[], None], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the verb; returns the metrics on the test images.

    Args:
        cli: the stage, built.
        trainer: that runs it.
        checkpoint: to continue from.
        begin: called when the first step is about to be taken.
        identity: what makes the stage what it is.
    """
    if not cli.model.by_steps:
        return fit_at_once(cli, trainer, begin, identity)
    _check(cli, trainer)
    if cli.config.compile:
        compile_encoders(cli.model)
    if cli.config.activation_checkpointing:
        recompute_encoders(cli.model)
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:0] = [LambdaCallback(on_train_start=lambda *_: begin()), _EndsWithoutSteps()]
    steps = trainer.max_steps  # a callback may lower it
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    if trainer.global_step < steps:
        raise UslError(_paused(cli, trainer, steps))
    metrics = measure(cli, trainer)
    metrics |= of_late(trainer, metrics)
    finish(cli, trainer, metrics)
    return metrics


class _EndsWithoutSteps(Callback):
    """Ends a training whose epoch took no step: a callback that raises StopIteration would have epochs without end."""

    _before = -1  # an epoch that is continued does not start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._before = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == self._before:
            trainer.should_stop = True


def _paused(cli: StageCLI, trainer: Trainer, steps: int) -> str:
    """What ended training early, and how to go on."""
    ended = f"{cli.stage.run_dir}: training ended after step {trainer.global_step} of {steps}"
    longest, epochs = cli.config.trainer.max_time, cli.config.trainer.max_epochs
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    left = [seconds for each in timers if (seconds := each.time_remaining()) is not None]
    if longest is not None and min(left, default=0.0) <= 0:
        ended += f": trainer.max_time {longest} is over, give a longer one"
    elif epochs not in (None, -1) and trainer.current_epoch >= epochs:
        ended += f": trainer.max_epochs {epochs} is over, leave it out"
    else:
        ended += ": a callback of trainer.callbacks ended it"
    if not StageFolder(cli.stage.run_dir).has_checkpoint:
        return f"{ended}; nothing is saved: the same command begins anew"
    return f"{ended}; the run is paused: --ckpt_path last continues it"


def of_late(trainer: Trainer, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the last of the evaluations amid the training say, beside the final one, which chance may have favoured.

    `test_accuracy_median` is that of the last 20, the final one among them, and `test_accuracy_evaluations` how many
    there were, 20 at most. Empty if there was none but the final one.

    Args:
        trainer: its `metrics.csv` has the validations.
        metrics: of the final evaluation.
    """
    logs = [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
    if HEADLINE not in metrics or not logs:
        return {}
    noted = logs[0].values(HEADLINE, trainer.global_step)
    values = [value for step, value in noted if step < trainer.global_step - 1] + [metrics[HEADLINE]]
    if len(values) < 2:
        return {}
    last = values[-LATE:]
    return {f"{HEADLINE}_median": statistics.median(last), f"{HEADLINE}_evaluations": len(last)}


def _check(cli: StageCLI, trainer: Trainer) -> None:
    if trainer.max_steps < 1:
        raise UslError("trainer.max_steps: the number of training steps is missing; expected 1 or more")
    every, part = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(every, int) and every % part:
        raise UslError(validations_amid(every, part))
    if cli.config.compile and cli.config.activation_checkpointing:
        raise UslError(COMPILED)
