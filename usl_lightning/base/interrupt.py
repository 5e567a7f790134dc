"""SIGINT, SIGTERM, SIGHUP and SIGUSR1: amid training they wait for the end of the step, so that nothing is lost."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl.h."""


class Interruption:
    """What becomes of the signals that ask a run to stop; a context manager.

    At once: KeyboardInterrupt. While `deferred` is set, only `signum` is: whoever set it looks at that between two
    steps, saves, and stops. A second Ctrl-C does not wait. SIGUSR1 is what SLURM sends ahead of a time limit.

    Attributes:
        signum: the signal that came, here or to another process of the run; or None.
        deferred: training goes on to the end of the step.
        breaks: though deferred, the first signal is KeyboardInterrupt at once; those that follow let what it makes
            be saved.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.breaks = False
        self._requeued = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self._before = {signum: signal.getsignal(signum) for signum in HEEDED} if _in_main_thread() else {}
        for signum, before in self._before.items():
            if before != signal.SIG_IGN:  # a shell in the background makes its children deaf to Ctrl-C, nohup to SIGHUP
                signal.signal(signum, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)  # a chain starts its stages deaf until now
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first, again = self.signum is None, signum == self.signum == signal.SIGINT
        if first or signum == signal.SIGINT:  # SIGTERM after SIGUSR1 does not take the requeueing back
            self.signum = signum
        if again or not self.deferred or (first and self.breaks):
            raise KeyboardInterrupt
        name = signal.Signals(signum).name
        with suppress(OSError):  # the terminal may be gone, its disk full
            os.write(2, f"usl: {name}: saving after this step{'; again: stop at once' * (name == 'SIGINT')}\n".encode())

    def requeue(self) -> None:
        """After SIGUSR1, put the SLURM job back into the queue, once; for the main process, when all is saved."""
        if self.signum == signal.SIGUSR1 and not self._requeued:
            self._requeued = True
            outcome = _requeue()
            if outcome is not None:
                print(f"usl: {outcome}", file=sys.stderr, flush=True)


class CtrlC:
    """Notes that Ctrl-C came, beside KeyboardInterrupt: what is being imported may swallow that, and fail for it later.

    Attributes:
        came: it did.
    """

    came = False

    def __enter__(self) -> "CtrlC":
        self._takes = _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._takes:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._takes:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def end_with_parent(parent: int) -> None:
    """On Linux, have this process killed as soon as the one that started it has ended, however that comes about.

    Args:
        parent: the process that started it; if it has ended already, so does this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(-signal.SIGKILL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _requeue() -> str | None:
    """Put the SLURM job that this process is of back into the queue; what came of it, None without SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, errors="replace", check=False
        )
        failure = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
    except OSError as error:
        failure = error.strerror or str(error)
    return f"scontrol requeue {job}: {failure}; submit the job again" if failure else f"job {job} is back in the queue"
