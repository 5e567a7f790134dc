"""The processes that the main one starts on its own machine, and what it does when one of them ends badly."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

STOPPED = 130
"""Exit code of a process that was told to stop."""

NOTICE = signal.SIGUSR2
"""By this the watching thread has the main one raise."""


class LostChildError(RuntimeError):
    """A process that trains with this one has ended."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, but for this: when a process ends badly, Lightning kills the main one within seconds.

    Here the main one is given `grace` seconds to notice by itself, as it does in the next exchange with the process;
    then an error is raised in it; if it cannot even be raised, in a kernel that waits for ever, it says why and ends.

    Attributes:
        grace: seconds.
    """

    grace = 5.0

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes, unless they have been, and call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        over = threading.Event()
        if self.procs:
            signal.signal(NOTICE, self._raise)
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            return function(*args, **kwargs)
        finally:
            over.set()

    def lost(self) -> tuple[int, int] | None:
        """The first process that has ended badly, and its exit code."""
        for rank, process in enumerate(self.procs, 1):
            if process.poll():
                return rank, process.returncode
        return None

    def was_stopped(self, seconds: float = 3.0) -> bool:
        """Whether a process was told to stop; one that is about to end is waited for that long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.procs and self.lost() is None:
            time.sleep(0.05)
        return any(process.returncode == STOPPED for process in self.procs)

    def finish(self, *, failed: bool) -> None:
        """After a failure, kill what is left of the other processes: they would tell of this one's end."""
        if failed:
            self.kill(signal.SIGKILL)
            self.procs.clear()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.5):
            if self.lost() is not None:
                break
        else:
            return
        for _ in range(6):
            if over.wait(self.grace):
                return
            os.kill(os.getpid(), NOTICE)
        if not over.wait(self.grace):
            print(f"usl: {self._what()}", file=sys.stderr, flush=True)
            self.finish(failed=True)
            os._exit(2)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        lost = self.lost()
        if lost is None or isinstance(sys.exc_info()[1], (RuntimeError, KeyboardInterrupt)):
            return  # it is being dealt with
        raise KeyboardInterrupt if lost[1] == STOPPED else LostChildError(self._what())

    def _what(self) -> str:
        rank, code = self.lost() or (0, 0)
        return f"process {rank} was killed by signal {-code}" if code < 0 else f"process {rank} failed ({code})"


def watch_children(strategy: Any) -> None:
    """Take our launcher where Lightning's would start the processes of a DDP strategy."""
    if isinstance(strategy, DDPStrategy) and type(strategy.launcher) is _SubprocessScriptLauncher:
        assert strategy.cluster_environment is not None
        strategy._launcher = Launcher(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)
