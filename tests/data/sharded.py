"""The same images as a folder, as tar files, and as Parquet files."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

LONG_AGO = (1_000_000_000, 1_000_000_000)
"""When what is not to be taken for just changed was changed."""


def png(seed: int, side: int = 9) -> bytes:
    """An image file of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files by their paths."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: Mapping[str, bytes], *members: tarfile.TarInfo) -> Path:
    """A tar file of files by their paths, in the order given, and of members without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    os.utime(path, LONG_AGO)
    return path


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Iterable[object] | None = None,
    *,
    names: Sequence[str] | None = None,
    paths: Sequence[str | None] | None = None,
    plain: bool = False,
    rows: int = 2,
) -> Path:
    """A Parquet file as `datasets` writes it; with `plain`, the images are no structs."""
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    given = paths or [f"{i}.png" for i in range(len(images))]
    cells = list(images) if plain else [{"bytes": b, "path": p} for b, p in zip(images, given, strict=True)]
    columns = {"image": pa.array(cells, kind)}
    if labels is not None:
        columns["label"] = pa.array(list(labels))
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    os.utime(path, LONG_AGO)
    return path
