"""A stage of a chain as a process of its own that ends with the chain's.

On Linux it is forked from this process, once that has imported what stages need: PyTorch and Lightning take seconds,
a fork takes none. Elsewhere, with a launcher, and where something already runs beside the main thread, which a fork
would leave behind in the midst of its work, it is Python started anew.
"""

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Protocol

from usl_lightning.base.errors import UslError
from usl_lightning.base.interrupt import HEEDED, end_with_parent

COMMAND = "usl_lightning.cli"


class StageProcess(Protocol):
    """What a chain asks of the process of a stage."""

    def wait(self) -> int:
        """Its exit code, minus the signal if one killed it, when it has ended."""

    def send_signal(self, signum: int) -> None:
        """Send it a signal, if it has not ended."""


class Forked:
    """A stage in a copy of this process, in which it finds all as if it had been started by `python -m`."""

    def __init__(self, words: Sequence[str]) -> None:
        from usl_lightning.stage import runner  # noqa: F401

        self._process = multiprocessing.get_context("fork").Process(target=_become, args=(words, os.getpid()))
        self._process.start()

    def wait(self) -> int:
        """See `StageProcess`."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        """See `StageProcess`."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, signum)


def start_stage(words: Sequence[str], launcher: Sequence[str]) -> StageProcess:
    """Start `usl WORDS`; signals are left blocked, here until the caller lets them in, there until they are heeded.

    Raises:
        UslError: there is no such launcher.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    try:
        if not launcher and can_fork():
            return Forked(words)
        heed = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, HEEDED)
        before = heed if launcher else partial(end_with_parent, os.getpid())
        return subprocess.Popen([*launcher, sys.executable, "-m", COMMAND, *words], preexec_fn=before)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        raise UslError(f"usl run: --launcher {shlex.join(launcher)}: {launcher[0]}: {error.strerror}") from error


def can_fork() -> bool:
    """Whether a copy of this process is as good as a new one: nothing runs beside the main thread, on no GPU."""
    torch: ModuleType | None = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return sys.platform == "linux" and threading.active_count() == 1 and not on_gpu


def _become(words: Sequence[str], parent: int) -> None:
    """Be `python -m usl_lightning.cli WORDS`, also for Lightning, which starts further processes by `sys.argv`."""
    end_with_parent(parent)
    for signum in HEEDED:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    sys.argv[1:] = words
    sys.modules.pop(COMMAND, None)
    runpy.run_module(COMMAND, run_name="__main__", alter_sys=True)
