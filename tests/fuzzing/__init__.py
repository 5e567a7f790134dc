"""Gives a reader thousands of files that are wrong.

A reader either reads a file rightly or raises a UslError, which is one line. Anything else is a failure: another
exception, more than `LONGEST` seconds, more memory than `MEMORY`, a process that dies. A process is forked for every
few thousand inputs, so that what crashes it is told too.

Inputs are numbered: the reader's name, the seed and the number give the same bytes again.
"""

import io
import json
import logging
import mmap
import os
import random
import resource
import select
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from fuzzing.mutations import TEXT, Change, mutated
from usl_lightning.base.errors import UslError

LONGEST = 10.0
"""Seconds of processor time for one input: other work on the machine does not count."""

LONGEST_WAIT = 60.0
"""Seconds by the clock, for what waits and for what no signal reaches."""

MEMORY = 2 << 30
"""Bytes that reading may take, beside what the process has at its beginning."""

LARGEST_CLAIM = 6 << 30
"""Bytes of address space beside that: a header may name a size that is never filled."""

BLOCK = 2_000
"""Inputs of a process."""


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        name: of the entry.
        suffix: of the file, which is new for each input.
        seeds: valid files; each is read before anything else, and must be. None: the file that `place` leaves.
        read: raises UslError if the file is wrong.
        changes: what may be wrong with it.
        place: where the file is to be in a folder, once what is to lie beside it has been put there; None: alone.
    """

    name: str
    suffix: str
    seeds: Callable[[], Sequence[bytes]] | None
    read: Callable[[Path], object]
    changes: Sequence[Change] = TEXT
    place: Callable[[Path], Path] | None = None


@dataclass
class Outcome:
    """What came of a reader's inputs.

    Attributes:
        inputs, read, refused: how many there were, were read, and raised a UslError.
        failures: number of the input (below 0: a valid file) -> what happened.
        slowest: processor seconds of the slowest input.
        peak_mib: the largest size of a reading process.
        seconds: of all inputs.
    """

    reader: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0
    peak_mib: float = 0.0
    seconds: float = 0.0


def fuzz(reader: Reader, count: int, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Give `count` inputs to a reader.

    Args:
        reader: the entry.
        count: inputs.
        seed: of all of them.
        keep: where to write those that failed.
    """
    outcome, began = Outcome(reader.name), time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / f"input{reader.suffix}" if reader.place is None else reader.place(Path(folder))
        seeds = [path.read_bytes()] if reader.seeds is None else reader.seeds()
        reading = _Reading(reader, seeds, seed, path)
        next_number = -len(seeds)
        while next_number < count:
            next_number = _block(reading, next_number, min(count, next_number + BLOCK), outcome)
    if keep is not None and outcome.failures:
        keep.mkdir(parents=True, exist_ok=True)
        for number in outcome.failures:
            (keep / f"{reader.name}_{seed}_{number}{reader.suffix}").write_bytes(reading.content(number))
    outcome.inputs = count + len(seeds)
    outcome.seconds = round(time.perf_counter() - began, 1)
    outcome.slowest, outcome.peak_mib = round(outcome.slowest, 4), round(outcome.peak_mib, 1)
    return outcome


def _block(reading: "_Reading", first: int, end: int, outcome: Outcome) -> int:
    """Have a new process read inputs; returns the number of the first that it did not read."""
    state = mmap.mmap(-1, _STATE.size)  # shared with it
    _write(state, _State(first, time.monotonic()))
    told, tell = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(told)
        reading.in_process(first, end, state, tell)
    os.close(tell)
    content, hung = _listen(process, told, state)
    _, status = os.waitpid(process, 0)
    last = _State(*_STATE.unpack(state[:]))
    outcome.read, outcome.refused = outcome.read + last.read, outcome.refused + last.refused
    outcome.slowest, outcome.peak_mib = max(outcome.slowest, last.slowest), max(outcome.peak_mib, last.peak_mib)
    outcome.failures.update(json.loads(line) for line in content.splitlines())
    if status:
        died = f"the process died ({os.waitstatus_to_exitcode(status)})"
        outcome.failures[last.number] = "no answer, killed" if hung else died
        return last.number + 1
    return last.number


_STATE = struct.Struct("qdqqdd")


class _State(NamedTuple):
    """Which input a process is reading, since when, and what came of those before."""

    number: int
    since: float
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak_mib: float = 0.0


def _write(state: mmap.mmap, value: _State) -> None:
    state[:] = _STATE.pack(*value)  # at once: `pack_into` writes zeros first


def _listen(process: int, told: int, state: mmap.mmap) -> tuple[bytes, bool]:
    """What a process tells until it ends, and whether it hung where no signal reaches it and was killed."""
    content, hung = b"", False
    while True:
        if select.select([told], [], [], 0.2)[0]:
            part = os.read(told, 65536)
            content += part
            if not part:
                os.close(told)
                return content, hung
        elif not hung and time.monotonic() - _State(*_STATE.unpack(state[:])).since > LONGEST_WAIT:
            os.kill(process, signal.SIGKILL)
            hung = True


class _Reading:
    """Inputs for a reader, and what it makes of them."""

    def __init__(self, reader: Reader, seeds: Sequence[bytes], seed: int, path: Path) -> None:
        self.reader, self.seeds, self.seed, self.path = reader, seeds, seed, path

    def content(self, number: int) -> bytes:
        """The bytes of an input."""
        if number < 0:
            return self.seeds[number]
        rng = random.Random(f"{self.reader.name} {self.seed} {number}")
        return mutated(self.seeds, rng, self.reader.changes)

    def in_process(self, first: int, end: int, state: mmap.mmap, tell: int) -> NoReturn:
        """Read inputs up to `end`, or to the first that took too much memory; tell what came of them, and exit."""
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C say things of single files
            outcome = Outcome(self.reader.name)
            with _limits(), os.fdopen(tell, "w") as file:
                begun, number = _peak(), first
                while number < end and _peak() - begun <= MEMORY:
                    counts = (outcome.read, outcome.refused, outcome.slowest, _peak() / 2**20)
                    _write(state, _State(number, time.monotonic(), *counts))
                    problem = self._problem(number, outcome)
                    if _peak() - begun > MEMORY:
                        problem = f"more than {MEMORY >> 20:,} MiB"
                    if problem is not None:
                        file.write(json.dumps([number, problem]) + "\n")
                        file.flush()
                    number += 1
                counts = (outcome.read, outcome.refused, outcome.slowest, _peak() / 2**20)
                _write(state, _State(number, time.monotonic(), *counts))
            code = 0
        finally:
            os._exit(code)

    def _problem(self, number: int, outcome: Outcome) -> str | None:
        """What went wrong with one input; None if nothing did."""
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(self.content(number))
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                self.reader.read(self.path)
            outcome.read += 1
            problem = None
        except UslError:
            outcome.refused += 1
            problem = "a valid file was refused" if number < 0 else None
        except BaseException as error:
            problem = _told(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - start
        outcome.slowest = max(outcome.slowest, seconds)
        return f"longer than {LONGEST:.0f} s" if seconds > LONGEST else problem


def _peak() -> int:
    """The largest size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _told(error: BaseException) -> str:
    """The exception, and the last place of the package that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "usl_lightning" in frame.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__}: {str(error)[:200]} ({where})"


@contextmanager
def _limits() -> Iterator[None]:
    """Stop what takes too long, refuse memory to what takes too much, and say nothing of single files."""

    def too_long(*_: object) -> NoReturn:
        raise TimeoutError(f"longer than {LONGEST:.0f} s")

    signal.signal(signal.SIGPROF, too_long)
    logging.getLogger("usl_lightning").setLevel(logging.ERROR)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LARGEST_CLAIM, resource.getrlimit(resource.RLIMIT_AS)[1]))
    yield
