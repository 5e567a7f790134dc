"""Main memory that large tensors are done with is kept for the next ones."""

import ctypes

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
