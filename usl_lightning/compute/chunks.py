"""Long rows of work in parts that fit into memory."""

from collections.abc import Iterator

import torch


def chunks(n: int, bytes_per_row: int, device: torch.device | None = None) -> Iterator[slice]:
    """Slices that cover `range(n)`, each of at most 64 MB (512 MB on a GPU), and of at least one row."""
    memory = (64 if device is None or device.type == "cpu" else 512) * 2**20
    step = max(1, memory // max(1, bytes_per_row))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))
