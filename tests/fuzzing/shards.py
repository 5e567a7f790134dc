"""Readers of shards: tar and Parquet files with images and labels."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from fuzzing import Reader
from fuzzing.mutations import BYTES
from usl_lightning.data.images.opening import open_source

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from sharded import png, write_parquet, write_tar


def _tars() -> Sequence[bytes]:
    files = {"a/1.png": png(1), "a/1.cls": b"1", f"b/{'n' * 120}.png": png(2), "b/2.json": b'{"label": 3}'}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        return [write_tar(path, files).read_bytes(), write_tar(path, {"./x.png": png(3)}).read_bytes()]


def _parquets() -> Sequence[bytes]:
    images = [png(number) for number in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.parquet"
        return [
            write_parquet(path, images, [0, 1, -1, 1], names=["a", "b"]).read_bytes(),
            write_parquet(path, images, ["x", None, "y", "x"], plain=True, rows=3).read_bytes(),
        ]


def read_shard(path: Path) -> None:
    """As the only one of a folder; what cannot be read may be left out instead."""
    os.environ["USL_CACHE"] = str(path.parent / ".cache")
    left = open_source("folder", "train", dir=str(path.parent), image_size=4, channels=3, on_error="skip")
    assert left.read(torch.arange(len(left))).shape == (len(left), 3, 4, 4)
    source = open_source("folder", "train", dir=str(path.parent), image_size=4, channels=3)
    assert source.read(torch.arange(len(source))).shape == (len(source), 3, 4, 4)


READERS = (
    Reader("tar_shard", ".tar", _tars, read_shard, BYTES),
    Reader("parquet_shard", ".parquet", _parquets, read_shard, BYTES),
)
