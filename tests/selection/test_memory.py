"""What memory is left, and refusals before it is taken."""

from pathlib import Path

import pytest
import torch

from usl_lightning.base.errors import UslError
from usl_lightning.vectors import memory
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.memory import available_memory, check_memory
from usl_lightning.vectors.neighbors import EXACT_UP_TO, approximate_memory, exact_memory, nearest_neighbors

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A machine with 10 GiB available, and a job in a control group of a group without a limit."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   10485760 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/jobs/one\n")
    for group, limit in (("jobs", "max"), ("jobs/one", str(4 * GIB))):
        folder = tmp_path / "cgroup" / group
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{3 * GIB}\n")
        (folder / "memory.stat").write_text(f"anon {GIB}\nactive_file {GIB}\ninactive_file {GIB // 2}\n")
    return tmp_path


def left(system: Path) -> float:
    found = available_memory(system / "proc", system / "cgroup")
    assert found is not None
    return found / GIB


def test_the_least_of_machine_and_groups(system: Path) -> None:
    assert left(system) == 4 - 3 + 1.5
    (system / "cgroup" / "jobs" / "memory.max").write_text(str(2 * GIB))
    assert left(system) == 2 - 3 + 1.5, "a group above counts too"
    (system / "proc" / "self" / "cgroup").write_text("0::/\n")
    assert left(system) == 10
    (system / "proc" / "self" / "cgroup").unlink()
    assert left(system) == 10


def test_here_it_is_a_number() -> None:
    found = available_memory()
    assert found is None or 10**7 < found < 10**15
    elsewhere = available_memory(Path("/nowhere"))
    assert elsewhere is None or elsewhere >= (found or 0)


def test_refusal_names_both_figures(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 10**9)
    with caplog.at_level("INFO"):
        check_memory(3 * 10**9, "a search")
    assert "a search: about 3.0 GB of memory" in caplog.text
    with pytest.raises(UslError, match=r"a search: not enough memory: about 3\.1 GB are needed .*, 3\.0 GB are av"):
        check_memory(3_100_000_000, "a search")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    check_memory(10**18, "a search")


def test_nothing_starts_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    x = torch.ones(50, 4)
    with pytest.raises(UslError, match="k-means of 50 points: not enough memory"):
        kmeans(x, 3)
    with pytest.raises(UslError, match="5 neighbours of 50 points: not enough memory"):
        nearest_neighbors(x, 5)
    large = torch.zeros(1, 1).expand(EXACT_UP_TO + 1, 1)
    with pytest.raises(UslError, match=f"5 neighbours of {EXACT_UP_TO + 1} points: not enough memory"):
        nearest_neighbors(large, 5)


def test_imagenet_fits_into_eight_gigabytes() -> None:
    features = 1_281_167 * 128 * 4
    assert features + approximate_memory(1_281_167, 128, 20) < 8e9
    assert exact_memory(60_000, 128, 400) < 2e9
