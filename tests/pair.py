"""Two processes that train as one, kept for many runs: to start them takes longer than most of the runs do."""

import io
import multiprocessing
import os
import socket
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from training import CHILDREN

from usl_lightning.cli import main


class Pair:
    """Runs `usl` in two processes as torchrun starts them; the same two for every run, unless one of them fails."""

    def __init__(self) -> None:
        self._ranks: dict[Connection, BaseProcess] = {}

    def usl(self, *words: str | Path) -> None:
        """`usl WORDS` in both; fails with all they say unless both get through."""
        if not self._ranks:
            self._start()
        told: dict[Connection, str] = {}
        for pipe in self._ranks:
            with suppress(BrokenPipeError):
                pipe.send([*map(str, words), "--trainer.devices=2", "--trainer.strategy=ddp"])
        while len(told) < 2:
            patience = 5 if any(told.values()) else 120  # the other one waits for one that has failed
            ready = wait([pipe for pipe in self._ranks if pipe not in told], patience)
            told |= {pipe: _answer(pipe) for pipe in ready or self._ranks if pipe not in told}
        if any(told.values()):
            lines = [f"process {rank}: {told[pipe] or 'got through'}" for rank, pipe in enumerate(self._ranks)]
            self.end()
            raise AssertionError("\n".join(lines))

    def end(self) -> None:
        """No process is left."""
        for process in self._ranks.values():
            process.kill()
            process.join()
        self._ranks.clear()

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(2):
            own, theirs = multiprocessing.Pipe()
            self._ranks[own] = CHILDREN.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            self._ranks[own].start()
            theirs.close()


def _answer(pipe: Connection) -> str:
    try:
        return pipe.recv() if pipe.poll() else "does not answer"
    except EOFError:
        return "has ended"


def _serve(rank: int, port: int, pipe: Connection) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    torch.set_num_threads(1)
    while True:
        words, said = pipe.recv(), io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                main(words)
            pipe.send("")
        except SystemExit as stop:
            pipe.send(f"exit code {stop.code}\n{said.getvalue()[-2000:]}")
        except BaseException:
            pipe.send(traceback.format_exc())
