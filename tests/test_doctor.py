"""`usl doctor`: what it finds, and the exit code that follows."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from runs import usl

from usl_lightning import doctor
from usl_lightning.base.errors import UslError
from usl_lightning.doctor import Finding, folder, found_data, packages


def test_this_machine_is_ready(tmp_path: Path) -> None:
    """The tests run here: so can everything else."""
    done = usl(tmp_path, "doctor").done()
    lines = done.out.splitlines()
    assert lines[-1] == "ready"
    assert len(lines) <= 24, "one screen"
    found = {line[5:].split()[0]: line for line in lines if line[5:].strip()}
    assert f"torch {metadata.version('torch')}" in found["packages"]
    assert "32-true" in found["precision"]
    assert "gloo works" in found["processes"]
    assert "digits (built in)" in found["data"]
    assert "runs: writable" in found["runs"]
    assert found.keys() >= {"usl", "cpu", "gpu", "faiss", "cache"}
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    found = folder("runs", tmp_path / "new" / "runs")
    assert found.ok
    assert not (tmp_path / "new").exists()
    unwritable = folder("runs", Path("/proc/runs"))
    assert unwritable.ok is False
    assert str(unwritable).startswith("FAIL runs       /proc/runs: cannot be written (")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SPACE_GB", 1e9)
    assert str(folder("runs", tmp_path)).endswith("GB free; free some space")


def test_a_missing_package() -> None:
    found = packages(["torch", "usl-no-such-package"])
    assert found.ok is False
    assert "usl-no-such-package missing; pip install usl-no-such-package" in str(found)


def test_data_is_found_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn/train_32x32.mat").touch()
    text = found_data(str(tmp_path)).text
    assert f"svhn ({tmp_path / 'svhn'})" in text
    assert "cifar10" not in text


def test_a_library_that_cannot_be_loaded_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def _faiss() -> Iterator[Finding]:
        raise ImportError("libfaiss.so: undefined symbol")
        yield

    monkeypatch.setattr(doctor, "_faiss", _faiss)
    assert doctor.main(["--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL faiss      libfaiss.so: undefined symbol\n" in out
    assert out.endswith("1 to mend: faiss\n")


def test_an_unknown_option() -> None:
    with pytest.raises(UslError, match=r"unknown option --data\.dirs \(did you mean 'data\.dir'\?\)"):
        doctor.main(["--data.dirs", "x"])
