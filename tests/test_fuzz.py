"""Files that are wrong are read or refused in one line; `tests/benchmarks/fuzz_readers.py` tries many more of them."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from usl_lightning.base.errors import UslError

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import fuzz_readers  # noqa: E402
import mutations  # noqa: E402

sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def short_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "LONGEST", 0.2)


@pytest.mark.parametrize("reader", fuzz_readers.READERS, ids=lambda reader: reader.name)
def test_a_reader_reads_or_refuses(reader: Any, tmp_path: Path) -> None:
    outcome = fuzz_readers.fuzz(reader, 300, seed=1, keep=tmp_path)
    assert outcome.failures == {}
    assert outcome.read > 30
    assert outcome.refused > 30


@pytest.mark.parametrize(("read", "problem"), [
    (lambda path: 1 / 0, "ZeroDivisionError: division by zero (test_fuzz.py:"),
    (lambda path: time.sleep(5), "TimeoutError: longer than"),
    (lambda path: bytearray(3 << 30), "MemoryError"),
    (lambda path: (_ for _ in ()).throw(UslError("a\nb")), "not one line"),
    (lambda path: (_ for _ in ()).throw(UslError("a" * 3000)), "not one line"),
    (lambda path: (_ for _ in ()).throw(UslError("a\ud800")), "cannot be printed"),
    (lambda path: (_ for _ in ()).throw(UslError("no")), "a valid file was refused"),
])  # fmt: skip
def test_what_counts_as_a_failure(short_alarm: None, read: Any, problem: str, tmp_path: Path) -> None:
    reader = fuzz_readers.Reader("x", ".txt", lambda: [b"valid"], read)
    outcome = fuzz_readers.fuzz(reader, 0, keep=tmp_path)
    assert outcome.failures[-1].startswith(problem)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"valid"]


def test_an_input_is_the_same_for_its_seed_and_number() -> None:
    seeds = [b'{"a": [1, 2, {"b": "c"}]}\n', b"x,y\n1,2\n"]
    inputs = [mutations.mutated(seeds, random.Random(f"x 0 {number}")) for number in range(200)]
    assert inputs == [mutations.mutated(seeds, random.Random(f"x 0 {number}")) for number in range(200)]
    assert len(set(inputs)) > 100
