"""What tensors are done with stays with the process, so that the next ones are not page by page new."""

import platform
import subprocess
import sys

import pytest

from usl_lightning.compute import device

COUNT = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from usl_lightning.compute.device import keep_freed_memory
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16_000_000)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_large_tensors_are_made_of_the_same_pages() -> None:
    assert 4 * faults("keep") < faults("return")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: object())
    assert not device.keep_freed_memory()
