"""Every reader of files that come from elsewhere, given thousands of files that are wrong.

    python tests/benchmarks/fuzz.py                              # all readers, 20,000 inputs of each of two seeds
    python tests/benchmarks/fuzz.py label_json --count 500 --seeds 7 --keep /tmp/failures

A reader either reads a file rightly or raises a UslError of one line; see `fuzzing` for what else is a failure. A run
of all readers writes `results/fuzz.json`, and `--json` of some puts their rows in place of those it has of them; inputs
are numbered, and `--keep` writes those that failed.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from fuzzing import Outcome, fuzz  # noqa: E402
from fuzzing.readers import READERS  # noqa: E402


def main() -> None:
    """Fuzz the readers named, or all, and print a line for each; exit code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(reader.name for reader in READERS))
    parser.add_argument("--count", type=int, default=20_000, help="inputs of a reader and a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    parser.add_argument("--json", type=Path, help="file for the figures; default: results/fuzz.json if all are fuzzed")
    typed = parser.parse_args()
    chosen = [reader for reader in READERS if reader.name in (typed.readers or [reader.name])]
    path = typed.json or (None if typed.readers else HERE / "results" / "fuzz.json")
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if typed.readers and path and path.exists():
        rows = {(row["reader"], row["seed"]): row for row in json.loads(path.read_text())["readers"]}
    failed = False
    for seed in typed.seeds:
        for reader in chosen:
            outcome = fuzz(reader, typed.count, seed, typed.keep)
            rows[reader.name, seed] = {**asdict(outcome), "seed": seed, "failures": list(outcome.failures.values())}
            failed |= bool(outcome.failures)
            _print(outcome, seed)
            if path:
                path.write_text(json.dumps({"machine": machine(), "readers": list(rows.values())}, indent=1) + "\n")
    sys.exit(failed)


def _print(outcome: Outcome, seed: int) -> None:
    counts = f"{outcome.inputs:7,} inputs  {outcome.read:7,} read  {outcome.refused:7,} refused"
    cost = f"slowest {outcome.slowest:.3f} s  peak {outcome.peak_mib:.0f} MiB  {outcome.seconds:.0f} s"
    print(f"{outcome.reader:20} {seed}  {counts}  {len(outcome.failures):4} failed  {cost}", flush=True)
    kinds: dict[str, list[int]] = {}
    for number, problem in outcome.failures.items():
        kinds.setdefault(problem.rpartition(" (")[2] or problem, []).append(number)
    for numbers in list(kinds.values())[:20]:
        print(f"    {len(numbers)} as input {numbers[0]}: {outcome.failures[numbers[0]]}")


if __name__ == "__main__":
    main()
