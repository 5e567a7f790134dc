"""The device that is computed on: its precision, and memory used with care."""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")

SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}
"""Of glibc's `mallopt`: number in malloc.h, and value: map nothing apart, return nothing, grow by 256 MB at once."""


def keep_freed_memory() -> bool:
    """Tell the C library to reuse what is freed rather than to return it to the system; for training on a CPU.

    glibc maps every tensor above 32 MB anew, and the system fills its pages with zeros at first touch: of a FixMatch
    step of WRN-28-2 that is a sixth of the CPU time. The process holds up to a third more memory.

    Returns:
        False where there is no such library: nothing changes then.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another C library
        return False
    return all(bool(mallopt(*setting)) for setting in SETTINGS.values())


def chunks(n: int, bytes_per_row: int, device: torch.device | None = None) -> Iterator[slice]:
    """Slices that cover `range(n)`, each of at most 64 MB (512 MB on a GPU), and of at least one row."""
    memory = (64 if device is None or device.type == "cpu" else 512) * 2**20
    step = max(1, memory // max(1, bytes_per_row))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def in_threads(
    function: Callable[[Part], Result], parts: Iterable[Part], device: torch.device | None = None
) -> Iterator[Result]:
    """What a function makes of each part, in order: a part in each of torch's threads, on a GPU one after the other.

    Small products, and what NumPy does between them, are faster so than each of them in all threads.
    """
    threads = torch.get_num_threads()
    if threads == 1 or (device is not None and device.type != "cpu"):
        yield from map(function, parts)
        return
    inference = torch.is_inference_mode_enabled()

    def alike(part: Part) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # these are a thread's own
            return function(part)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(alike, parts)
    finally:
        torch.set_num_threads(threads)


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if it is float64: losses are not computed in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def device_of(accelerator: str) -> str:
    """`cuda`, `mps` or `cpu`: what a Trainer with this accelerator computes on here."""
    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
