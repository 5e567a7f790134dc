"""The script for a GPU, `tests/benchmarks/device.py`, in small and on the CPU: all of its parts find something."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; its folder is found by the processes that it starts too."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import device

    yield device
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            sys.modules.pop(name)


@pytest.mark.slow
def test_every_part_holds_on_the_cpu(device: ModuleType, tmp_path: Path) -> None:
    """All but `compile`, which is tried by a test of its own."""
    names = [name for name in device.PARTS if name != "compile"]
    record = device.run_parts(names, "cpu", "tiny", 120, tmp_path / "device.json", patience=20)
    assert json.loads((tmp_path / "device.json").read_text()) == record
    parts = record["parts"]
    assert list(parts) == names
    assert {name: part["error"] for name, part in parts.items() if "error" in part} == {}
    assert all(parts[name]["holds"] for name in ("ops", "vectors", "selectors", "methods", "resume"))
    assert len(parts["ops"]["recipes"]) >= 11
    assert parts["fixmatch"]["bf16"]["images_per_second"] > 0
    assert 0 < parts["vit"]["views_share_of_bf16"] < 1
    assert parts["selection"]["picks"]["seconds"] > 0


def _crash(device: str, size: Any) -> Iterator[dict[str, Any]]:
    yield {"seen": 1}
    os._exit(7)


def _hang(device: str, size: Any) -> Iterator[dict[str, Any]]:
    yield {"holds": True, "seen": 2}
    time.sleep(1000)


def test_what_fails_crashes_or_hangs_is_told_and_the_others_go_on(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes it starts are forked here, so that they know the parts of this test."""

    def fail(device: str, size: Any) -> Iterator[dict[str, Any]]:
        yield {"seen": 3}
        raise ValueError("no kernel")

    def well(device: str, size: Any) -> Iterator[dict[str, Any]]:
        yield {"holds": True, "device": device}

    parts = {"crash": (_crash, 9), "hang": (_hang, 1), "fail": (fail, 9), "well": (well, 9)}
    monkeypatch.setattr(device, "PARTS", {name: device.Part(*part) for name, part in parts.items()})
    context = device.multiprocessing.get_context("fork")
    monkeypatch.setattr(device.multiprocessing, "get_context", lambda _: context)
    found = device.run_parts(list(parts), "cpu", "tiny", 8, tmp_path / "device.json")["parts"]
    assert found["crash"]["error"] == "the process ended with 7"
    assert found["hang"]["error"] == "not done within 1 s"
    assert found["fail"]["error"] == "ValueError: no kernel"
    assert found["well"]["device"] == "cpu"
    assert {name: found[name]["holds"] for name in found} == {"crash": False, "hang": True, "fail": False, "well": True}
    assert [found[name]["seen"] for name in ("crash", "hang", "fail")] == [1, 2, 3]
    late = device.run_parts(["well"], "cpu", "tiny", 0, tmp_path / "late.json")["parts"]
    assert late["well"]["error"] == "no time was left"
