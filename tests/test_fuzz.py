"""Files that are wrong are read or refused in one line; `tests/benchmarks/fuzz.py` tries many more of them."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from fuzzing.mutations import JSON, TEXT, mutated
from fuzzing.readers import READERS

from usl_lightning.base.errors import UslError

SLOW = {"stage_json", "metrics_csv", "evaluation_json", "checkpoint", "overview_npz"}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_reader_reads_or_refuses(reader: Any, tmp_path: Path) -> None:
    outcome = fuzzing.fuzz(reader, 60 if reader.name in SLOW else 200, seed=1, keep=tmp_path)
    assert outcome.failures == {}
    assert outcome.read + outcome.refused == outcome.inputs
    assert outcome.read > outcome.inputs // 20


@pytest.mark.parametrize(("limits", "read", "problem"), [
    ({}, lambda path: 1 / 0, "ZeroDivisionError: division by zero (test_fuzz.py:"),
    ({"LONGEST": 0.2}, lambda path: all(iter(lambda: 1, 0)), "longer than"),
    ({"LONGEST_WAIT": 5.0}, lambda path: time.sleep(30), "no answer, killed"),
    ({"MEMORY": 64 << 20}, lambda path: b"x" * (300 << 20), "more than 64 MiB"),
    ({}, lambda path: bytearray(8 << 30), "MemoryError"),
    ({}, lambda path: os.kill(os.getpid(), signal.SIGKILL), "the process died (-9)"),
])  # fmt: skip
def test_what_counts_as_a_failure(
    limits: dict[str, float], read: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(fuzzing, name, limit)

    def harmless(path: Path) -> None:
        if path.read_bytes() != b"valid":
            read(path)

    reader = fuzzing.Reader("x", ".txt", lambda: [b"valid", b"bad"], harmless)
    outcome = fuzzing.fuzz(reader, 0, keep=tmp_path)
    assert list(outcome.failures) == [-1]
    assert problem in outcome.failures[-1]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"bad"]


def test_a_valid_file_is_not_refused(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise UslError("no")

    outcome = fuzzing.fuzz(fuzzing.Reader("x", ".txt", lambda: [b"valid"], refuse), 3)
    assert outcome.failures == {-1: "a valid file was refused"}
    assert outcome.refused == 4


def test_a_refusal_is_one_line_whatever_is_in_it() -> None:
    assert str(UslError("a\nb\ud800\x1b[2J")) == r"a\nb\ud800\x1b[2J"
    long = str(UslError(f"x.json: {'y' * 5000}; mend it"))
    assert len(long) == 2000
    assert long.startswith("x.json: yyy")
    assert long.endswith("yyy; mend it")


def test_an_input_is_the_same_for_its_seed_and_number() -> None:
    seeds = [b'{"a": [1, 2, {"b": "c"}]}\n', b"x,y\n1,2\n"]
    for changes in (TEXT, JSON, *{reader.changes for reader in READERS}):
        inputs = [mutated(seeds, random.Random(f"x 0 {number}"), changes) for number in range(100)]
        assert inputs == [mutated(seeds, random.Random(f"x 0 {number}"), changes) for number in range(100)]
        assert len(set(inputs)) > 30
