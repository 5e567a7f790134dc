"""A short soak; `tests/benchmarks/soak.py` is the long one."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.mark.slow
def test_a_chain_under_a_random_killer_ends_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    soak.write_chain(tmp_path, 100)
    growth = soak.undisturbed(tmp_path, "alone", 100)
    kills = soak.disturbed(tmp_path, "killed", 1.5, seed=1, kills=5)
    assert len(kills) >= 3, "the chain was over before it was disturbed"
    assert soak.unequal(tmp_path, "killed", "alone") == []
    assert growth
    assert growth.keys() <= {"pretrain", "train"}
    sys.modules.pop("soak")


def test_the_slope_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    assert soak.slope([(step, 300 + 0.002 * step) for step in range(0, 1000, 7)]) == pytest.approx(2)
    assert soak.slope([(5, 300.0)]) == 0
