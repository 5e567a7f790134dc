"""Main memory: what has no room is refused before it starts, what is asked again of the same features is kept."""

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from usl_lightning.base.errors import UslError

T = TypeVar("T")

_known: dict[Hashable, Any] | None = None


def once(compute: Callable[[], T], features: Tensor, *question: Hashable) -> T:
    """What `compute` gives; within `remembering`, the answer there was to the same question about the same features.

    Args:
        compute: what is to be known; whoever gets it leaves it as it is.
        features: [n, d]; the same if all bits are, on the same device.
        question: all else that the answer depends on.
    """
    if _known is None:
        return compute()
    content = hashlib.sha256(features.detach().cpu().contiguous().numpy().data).digest()
    key = (content, features.shape, features.dtype, features.device, *question)
    if key not in _known:
        _known[key] = compute()
    answer: T = _known[key]
    return answer


@contextmanager
def remembering() -> Iterator[None]:
    """Within it `once` keeps its answers."""
    global _known
    _known = {}
    try:
        yield
    finally:
        _known = None


log = logging.getLogger(__name__)

WORTH_SAYING = 10**9
"""Estimates from this many bytes on are logged."""


def check_memory(needed: int, what: str) -> None:
    """Log what a computation needs beside what is held already, and refuse it if that is not there.

    Args:
        needed: bytes, an estimate.
        what: what it is for, the beginning of the message.

    Raises:
        UslError: less is available; the message has both figures.
    """
    if needed >= WORTH_SAYING:
        log.info("%s: about %.1f GB of memory beside the features", what, needed / 1e9)
    available = available_memory()
    if available is not None and needed > available:
        raise UslError(
            f"{what}: not enough memory: about {needed / 1e9:.1f} GB are needed beside the features, "
            f"{available / 1e9:.1f} GB are available; use fewer dimensions or neighbours, or a larger machine"
        )


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take: of the machine, and of its control groups (containers, SLURM).

    Args:
        proc, cgroups: where Linux tells of them; elsewhere the machine's whole memory counts as available.

    Returns:
        None where nothing tells.
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return _physical_memory()
    return min([machine, *_room_in_groups(proc, cgroups)])


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _room_in_groups(proc: Path, cgroups: Path) -> list[int]:
    """Bytes left in this process's control group (version 2) and in those above it, where they have a limit."""
    try:
        own = (proc / "self" / "cgroup").read_text(encoding="utf-8").strip().rpartition(":")[2].strip("/")
    except OSError:
        return []
    folder, rooms = cgroups / own, []
    for group in (folder, *folder.parents):
        if group == cgroups.parent:
            break
        try:
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            held = int((group / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            cached = int(stat["inactive_file"]) + int(stat["active_file"])  # given back when it is needed
        except (OSError, ValueError, KeyError):  # "max": no limit
            continue
        rooms.append(limit - held + cached)
    return rooms
