"""Parquet files as shards, as Hugging Face's `datasets` writes them: a row is an image.

The column `image` (or `img`) is a struct of `bytes` and `path`, or binary; `label`, if there is one, a whole number or
a text. The names of the classes are those that the file's metadata gives. Read with pyarrow, which is optional.

A file is named by the shard and its row, `train-00000-of-00002/00000017.png`, since the paths that are kept in such
files are often the same, or missing; the ending is that of the path. To read one image is to read the group of rows
that it is in, the last of which stay in memory.
"""

import functools
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import Stamp, parse_json
from usl_lightning.data.images.shard import Shard
from usl_lightning.data.images.walk import LARGEST, SUFFIXES

GROUPS = 4
"""Groups of rows that a process keeps in memory."""

_COLUMNS = ("image", "img")
_reading = threading.Lock()


def _renew() -> None:
    """A process that is forked while a thread reads gets a lock that nobody holds."""
    global _reading
    _reading = threading.Lock()


os.register_at_fork(after_in_child=_renew)


def look_into(path: Path) -> Shard:
    """What is in a Parquet file; to learn the sizes of its images, it is read through once.

    Raises:
        OSError: it cannot be read.
        UslError: pyarrow is missing, the file is damaged, or has no column of images.
    """
    with _damage(path):
        file = _opened(str(path))
        column, label = _column(path, file), "label" if "label" in file.schema_arrow.names else None
        names = _class_names(file.schema_arrow.metadata) if label else ()
        found = Shard(labelled=True, named=bool(names), texts=names)
        code, row = {text: number for number, text in enumerate(names)}, 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[column, label] if label else [column], use_threads=False)
            labels = table.column(label).to_pylist() if label else [None] * len(table)
            for (size, ending), given in zip(_images(table.column(column)), labels, strict=True):
                name = f"{row:08}{ending}"
                if problem := _problem(size):
                    found.odd.append((name, problem))
                else:
                    found.names.append(f"{path.stem}/{name}")
                    found.offsets.append(row)
                    found.sizes.append(size or 0)
                    found.labels.append(_number(path, row, given, code, named=found.named))
                row += 1
        found.texts = tuple(code)
        return found


def read(path: str, stamp: Stamp, row: int) -> bytes:
    """The bytes of the image in a row.

    Raises:
        UslError: pyarrow is missing, or the file is damaged.
    """
    with _damage(Path(path)):
        starts = _starts(path, stamp)
        group = bisect_right(starts, row) - 1
        with _reading:  # several threads want the same group
            images = _group(path, stamp, group)
        content: bytes = images[row - starts[group]].as_py()
        return content


@functools.lru_cache(64)
def _starts(path: str, stamp: Stamp) -> list[int]:
    """The first row of each group of rows, and the number of all."""
    about = _opened(path).metadata
    return [0, *accumulate(about.row_group(i).num_rows for i in range(about.num_row_groups))]


@functools.lru_cache(GROUPS)
def _group(path: str, stamp: Stamp, group: int) -> Any:
    file = _opened(path)
    column = _column(Path(path), file)
    return _bytes(file.read_row_group(group, columns=[column], use_threads=False).column(column))


def _opened(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UslError(f"{path}: Parquet files are read with pyarrow; pip install 'usl-lightning[parquet]'") from error
    return pyarrow.parquet.ParquetFile(path)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever pyarrow says of a damaged file, in one line; what the system says of a file stays."""
    try:
        yield
    except UslError:
        raise
    except Exception as error:  # ArrowInvalid is a ValueError, others are OSErrors without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = " ".join(str(error).split())[:200]
        raise UslError(f"{path}: a damaged Parquet file, or none ({what}); write it again") from error


def _column(path: Path, file: Any) -> str:
    """The column of the images."""
    import pyarrow as pa

    for name in _COLUMNS:
        if name in file.schema_arrow.names:
            kind = file.schema_arrow.field(name).type
            inner = (
                kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
            )
            if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
                return name
            raise UslError(f"{path}: column {name} is {kind}, expected the bytes of image files, or bytes and path")
    there = ", ".join(file.schema_arrow.names)[:200]
    raise UslError(f"{path}: no column {' or '.join(_COLUMNS)}; it has {there}")


def _bytes(column: Any) -> Any:
    """The bytes of images, without the paths beside them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _images(column: Any) -> list[tuple[int | None, str]]:
    """(number of bytes, None if there are none; ending of its name) of each image."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.binary_length(_bytes(column)).to_pylist()
    is_named = pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0
    paths = pc.struct_field(column, "path").to_pylist() if is_named else [None] * len(lengths)
    return list(zip(lengths, map(_ending, paths), strict=True))


def _ending(path: str | None) -> str:
    return next((suffix for suffix in SUFFIXES if path is not None and path.lower().endswith(suffix)), "")


def _problem(size: int | None) -> str:
    if size is None:
        return "no image in this row, or its path alone; expected the bytes of an image file"
    return f"{size / 1e9:.1f} GB, more than an image has; remove it" if size > LARGEST else ""


def _class_names(metadata: Any) -> tuple[str, ...]:
    """The names that `datasets` has written for the labels; none if there are none."""
    try:
        names = parse_json((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def _number(path: Path, row: int, given: Any, code: dict[str, int], *, named: bool) -> int:
    """The place of a label among the texts; -1 where there is none, which `datasets` writes so too."""
    if given is None or given == -1:
        return -1
    if not isinstance(given, int | str):
        raise UslError(f"{path}: label of row {row} is {str(given)[:40]}, expected a number or the name of one class")
    if named and isinstance(given, int) and not 0 <= given < len(code):
        raise UslError(f"{path}: label of row {row} is {given}, but there are {len(code)} classes")
    return given if named and isinstance(given, int) else code.setdefault(str(given), len(code))
