"""Files that are either whole or not there. No heavy imports: the front of the command line uses this."""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.strict_json import parse_json


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    On any failure (a full disk, a kill) `path` is untouched and the temporary file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UslError(
            f"{path}: cannot be written ({reason}); choose a folder with write access and free space"
        ) from error
    finally:
        with suppress(OSError):  # a folder that cannot be written has said so above
            temporary.unlink()


def flush_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut, before anything is done that relies on them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, indented, ending with a newline; floats that are not finite become null."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=1, ensure_ascii=False)
    write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path, advice: str) -> Any:
    """The value of a JSON file, read strictly; see `parse_json`.

    Args:
        path: the file.
        advice: what to do if it is damaged, the end of the message.

    Raises:
        FileNotFoundError: there is no such file.
        UslError: it cannot be read, or is not JSON as it is meant; the line says where.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UslError(f"{path}: cannot be read ({reason}); {advice}") from error


def sha256_of(content: bytes) -> str:
    """`sha256:<hex>` of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def sha256_of_file(path: str | Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
