"""What `metrics.csv` holds, or is yet to hold, of the step that is saved: a checkpoint carries it along."""

from pytorch_lightning import Trainer
from torch import Tensor

from usl_lightning.engine.logs import MetricsCSV


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
