"""Loggers that a configuration names beside the package's own: they may fail, the run does not."""

import logging
from collections.abc import Callable
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from usl_lightning.base.errors import UslError

log = logging.getLogger(__name__)


class _Guest(Logger):
    """Put before a logger's own class: what it is asked to write is tried until it fails once, which is said."""

    _failed = False

    def _try(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._failed:
            return
        try:
            write(*args, **kwargs)
        except Exception as error:
            self._failed = True
            log.warning("trainer.logger: %s: %s; the run goes on without it", type(self).__name__, _said(error))

    @property
    def experiment(self) -> Any:
        """What the logger writes to; Lightning asks for it when a run begins."""
        try:
            return super().experiment  # type: ignore[misc]
        except AttributeError:
            raise
        except Exception as error:
            raise UslError(f"trainer.logger: {type(self).__name__}: cannot begin ({_said(error)})") from error

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Metrics of a step."""
        self._try(super().log_metrics, *args, **kwargs)  # type: ignore[safe-super]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Once, at the start."""
        self._try(super().log_hyperparams, *args, **kwargs)  # type: ignore[safe-super]

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """Once, at the start."""
        self._try(super().log_graph, *args, **kwargs)

    def save(self) -> None:
        """Now and then."""
        self._try(super().save)

    def after_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint was written."""
        self._try(super().after_save_checkpoint, *args, **kwargs)

    def finalize(self, *args: Any, **kwargs: Any) -> None:
        """At the end."""
        self._try(super().finalize, *args, **kwargs)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def guest(logger: Logger) -> Logger:
    """The same logger; what it raises amid a run is a warning, and what it raises at its start one line."""
    kind = type(logger)
    logger.__class__ = type(kind.__name__, (_Guest, kind), {})
    return logger
