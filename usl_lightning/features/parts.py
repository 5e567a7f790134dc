"""Rows of a matrix, appended to a file as they are computed, by any process: a killed run goes on from there."""

import shutil
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.distributed import world_size
from usl_lightning.data.sampling import process_range


class Place:
    """One process of a trainer, or this process alone.

    Args:
        trainer: whose processes share the images; None: there is no other process.
        device: without a trainer, the device to compute on.

    Attributes:
        device: of this process.
        rank: which of the processes it is.
        precision: of the trainer's steps, Lightning's name of it.
    """

    def __init__(self, trainer: Trainer | None = None, device: torch.device | str = "cpu") -> None:
        self._trainer = trainer
        self.device = torch.device(device) if trainer is None else trainer.strategy.root_device
        self.rank: int = 0 if trainer is None else trainer.global_rank
        self.precision = "32-true" if trainer is None else str(trainer.precision)

    def share(self, n: int) -> range:
        """This process's share of n images."""
        return process_range(n, self.rank, world_size())

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast, as the trainer has it for its own steps."""
        return nullcontext() if self._trainer is None else self._trainer.precision_plugin.forward_context()


class PartFile:
    """float32 rows in `PATH`, and beside it in `.sums` a line for each block: its rows and its CRC-32.

    What a kill or a power cut has left half written, or not as it was written, is cut off.

    Args:
        path: the file; its folder is made.
        width: numbers in a row.
        block: rows that are appended at a time; the rows kept from an earlier run are a multiple of it.
        rows: that there will be, for which the disk must have space.

    Attributes:
        done: rows in the file.

    Raises:
        UslError: the folder cannot be written, or is too full.
    """

    def __init__(self, path: Path, width: int, block: int, rows: int) -> None:
        self.path, self.width = path, width
        self._sums = path.with_suffix(".sums")
        with _told(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
        if free < 8 * width * rows:
            raise UslError(
                f"{path.parent.parent}: the features need {8e-9 * width * rows:.2f} GB and {free / 1e9:.2f} GB are "
                "free; give another --model.cache"
            )
        with _told(path):
            self.done = self._cut_to_whole(block)

    def __enter__(self) -> "PartFile":
        with _told(self.path):
            self._files = open(self.path, "ab"), open(self._sums, "a", encoding="ascii")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def append(self, rows: Tensor) -> None:
        """Add a block of rows [b, width]."""
        content = rows.float().cpu().contiguous().numpy().data
        data, sums = self._files
        with _told(self.path):
            data.write(content)
            data.flush()
            sums.write(f"{len(rows)} {zlib.crc32(content):08x}\n")  # after its rows: a line vouches for them
            sums.flush()
        self.done += len(rows)

    def read(self) -> Tensor:
        """All rows, float32 [done, width]."""
        with _told(self.path):
            return torch.from_numpy(np.fromfile(self.path, np.float32).reshape(-1, self.width))

    def _cut_to_whole(self, block: int) -> int:
        """Cut both files to the blocks that are whole and add up to a multiple of `block`; returns their rows."""
        lines, kept = 0, 0
        self.path.touch()
        self._sums.touch()
        for number, (first, content) in enumerate(whole_blocks(self.path, self.width), 1):
            rows = first + len(content)
            if rows % block == 0:
                lines, kept = number, rows
        told = self._sums.read_bytes().splitlines(keepends=True)
        with open(self.path, "r+b") as file:
            file.truncate(4 * self.width * kept)
        with open(self._sums, "r+b") as file:
            file.truncate(sum(map(len, told[:lines])))
        return kept


def whole_blocks(path: Path, width: int, wanted: range | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(First row, rows [b, width]) of each block of a `PartFile`, up to the first that is not as it was written.

    Args:
        path, width: see `PartFile`.
        wanted: rows of the file; blocks that hold none of them are neither read nor given. None: all.
    """
    first = 0
    with open(path, "rb") as file:
        sums = path.with_suffix(".sums")
        for line in sums.read_bytes().splitlines(keepends=True) if sums.exists() else ():
            count, _, checksum = line.rstrip(b"\n").partition(b" ")
            if not (line.endswith(b"\n") and count.isdigit() and len(count) < 10):
                return
            rows = int(count)
            if wanted is None or (first < wanted.stop and first + rows > wanted.start):
                file.seek(4 * width * first)
                content = file.read(4 * width * rows)
                if len(content) < 4 * width * rows or b"%08x" % zlib.crc32(content) != checksum:
                    return
                yield first, np.frombuffer(content, np.float32).reshape(rows, width)
            first += rows


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UslError(f"{path}: cannot be written ({error.strerror}); give another --model.cache") from error
