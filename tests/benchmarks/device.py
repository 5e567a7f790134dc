"""What only a GPU can show, in one command of at most eight minutes: is everything computed as on a CPU, and how fast?

    python tests/benchmarks/device.py [--minutes 8] [--parts ops vectors] [--device cuda] [--size full]

The parts come in order of their worth, each with a limit of its own, in one process beside this one; a part that fails,
crashes or hangs is recorded as that, and the others go on in a new process. What is known is written to
results/device.json after every part, so that a machine that is taken away leaves what it had shown. Exit code 1 if a
check did not hold. `--size tiny --device cpu` tries all of it in small: `tests/test_device_script.py`.
"""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import device_checks
import device_speed
import torch
from device_sizes import SIZES, Size
from machine import machine

RESULTS = Path(__file__).parent / "results"


class Part(NamedTuple):
    """One thing to find out.

    Attributes:
        run: with the device and the size; it yields what it knows so far, plain data. `holds`: whether a check does.
        seconds: after which it is given up; what it knew by then is kept.
    """

    run: Callable[[str, Size], Iterator[dict[str, Any]]]
    seconds: int


PARTS = {
    "ops": Part(device_checks.ops, 60),
    "vectors": Part(device_checks.vectors, 60),
    "selectors": Part(device_checks.selectors, 90),
    "methods": Part(device_checks.methods, 180),
    "resume": Part(device_checks.resume, 60),
    "fixmatch": Part(device_speed.fixmatch, 60),
    "simclr": Part(device_speed.simclr, 60),
    "vit": Part(device_speed.vit, 60),
    "selection": Part(device_speed.selection, 120),
    "views": Part(device_speed.views, 40),
    "compile": Part(device_speed.compiled, 120),
}


def serve(pipe: Connection, device: str, size: str) -> None:
    """In a process of its own: run the parts that are named, one by one, and answer with what they found."""
    while True:
        name = pipe.recv()
        try:
            with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
                for found in PARTS[name].run(device, SIZES[size]):
                    pipe.send(found)
            pipe.send({})
        except Exception as error:  # of any kind: it is what is to be found out
            where = traceback.format_exc().splitlines()[-12:]
            pipe.send({"holds": False, "error": f"{type(error).__name__}: {error}", "where": where})


class Worker:
    """The process that runs parts; a new one after a crash or a limit.

    Args:
        device: `cuda` or `cpu`.
        size: name of a size.
    """

    def __init__(self, device: str, size: str) -> None:
        self._about = device, size
        self._process: Any = None
        self._pipe: Any = None

    def run(self, name: str, seconds: float) -> dict[str, Any]:
        """What a part found within so many seconds; `error` if it did not come to its end."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs, *self._about), daemon=True)
            self._process.start()
            theirs.close()
        known: dict[str, Any] = {}
        until = time.monotonic() + seconds
        self._pipe.send(name)
        try:
            while self._pipe.poll(max(0.0, until - time.monotonic())):
                found = self._pipe.recv()
                if not found or "error" in found:
                    return known | found
                known = found
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            code = self._process.exitcode
            self.end()
            return known | {"holds": False, "error": f"the process ended with {code}"}
        self.end()
        return known | {"error": f"not done within {seconds:.0f} s"}

    def end(self) -> None:
        """No process is left."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def run_parts(
    names: list[str], device: str, size: str, minutes: float, out: Path, patience: float = 1
) -> dict[str, Any]:
    """Run parts in order as long as there is time; the record, which is in the file after every part.

    Args:
        names: of the parts.
        device: `cuda` or `cpu`.
        size: name of a size.
        minutes: after which nothing is begun.
        out: the file.
        patience: times the limit of each part.
    """
    began = time.monotonic()
    record: dict[str, Any] = {"device": device, "size": size, "machine": machine(), "parts": {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    worker = Worker(device, size)
    try:
        for name in names:
            left = 60 * minutes - (time.monotonic() - began)
            start = time.monotonic()
            found = (
                {"error": "no time was left"}
                if left < 5
                else worker.run(name, min(left, patience * PARTS[name].seconds))
            )
            found["seconds"] = round(time.monotonic() - start, 1)
            record["parts"][name] = found
            record["seconds"] = round(time.monotonic() - began, 1)
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            held = {True: "holds", False: "DOES NOT HOLD", None: ""}[found.get("holds")]
            told = ", ".join(filter(None, [held, found.get("error", "")]))
            print(f"{name:10} {found['seconds']:6.1f} s  {told}", flush=True)
    finally:
        worker.end()
    return record


def main() -> int:
    """Run all; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing is begun")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--out", type=Path, default=RESULTS / "device.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is to be seen here; `--device cpu --size tiny` tries the script itself")
    record = run_parts(arguments.parts, arguments.device, arguments.size, arguments.minutes, arguments.out)
    return int(any(part.get("holds") is False or "where" in part for part in record["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
