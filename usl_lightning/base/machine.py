"""What a stage runs on, for its record, and which of its processes this one is. Imports nothing heavy."""

import os
import platform
import sys
from importlib import metadata

RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK")
"""Variables by which a launcher tells a process which one it is."""

ROOM = "make room in memory and shared memory (/dev/shm; of a container: --shm-size), or give --data.workers 0"
"""What helps processes that read images."""


def is_main_process() -> bool:
    """False in the further processes that a launcher (Lightning, torchrun, SLURM) starts for a stage."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def cores() -> int:
    """Processors that this process may run on: fewer than the machine has where a scheduler or `taskset` says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "faiss-cpu", "faiss-gpu", "scikit-learn", "numpy")
"""Packages whose versions are noted, those that are installed."""


def this_machine() -> dict[str, str]:
    """Name -> value: `python`, `platform`, `processor`, `gpu` (if torch is imported and sees one), and `packages`."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{_processor()}, {cores()} cores",
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["gpu"] = ", ".join(names)
    return found | {"packages": ", ".join(f"{name} {version}" for name, version in _versions().items())}


def _processor() -> str:
    """The name the kernel gives the processor, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(named, platform.machine())
    except OSError:
        return platform.machine()


def _versions() -> dict[str, str]:
    """Package -> version, of those of `PACKAGES` that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
