"""Files of numbers, read so that nothing in them is unpickled and a damaged one is told in a line."""

import io
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

from usl_lightning.base.atomic import check_file
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import as_noted

DAMAGE = (
    OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError, NotImplementedError, RuntimeError,
    SyntaxError, AttributeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises at damaged files."""


def load_arrays(path: Path, *, where: str | None = None, content: bytes | None = None) -> dict[str, Any]:
    """The arrays of an `.npz` file by name; that of an `.npy` file under "".

    Args:
        path: the file.
        where: what it is called in messages; None: its path.
        content: what is in it, if that has been read already.

    Raises:
        FileNotFoundError: there is no such file.
        UslError: it is damaged, holds Python objects, is no NumPy file, or was changed since this stage began.
    """
    import numpy as np  # the front tells of other mistakes without it

    try:
        if content is None:
            check_file(path)
        loaded = np.load(path if content is None else io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"": loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
                other = next((name for name, array in arrays.items() if not isinstance(array, np.ndarray)), None)
                if other is not None:
                    raise ValueError(f"{other} is no array")
        for array in arrays.values():
            check_texts(array)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason:  # NumPy advises to load it all the same
            reason = "it is none, or holds Python objects"
        raise UslError(
            f"{where or path}: not a whole .npy or .npz file of numbers ({printable(reason, 200)})"
        ) from error
    as_noted(path)
    native = {name: array.dtype.newbyteorder("=") for name, array in arrays.items()}  # torch takes no other
    return {name: array.astype(native[name], copy=False) for name, array in arrays.items()}


def check_texts(array: Any) -> None:
    """Refuse, with a ValueError, an array of texts that are none: NumPy raises SystemError later."""
    import numpy as np

    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        codes = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(-1).view(np.uint32)
        if codes.max() > 0x10FFFF or bool(((codes >= 0xD800) & (codes < 0xE000)).any()):
            raise ValueError("its texts are no Unicode")


def load_array(path: Path, *, where: str | None = None, content: bytes | None = None) -> Any:
    """The one array of an `.npy` file.

    Raises:
        FileNotFoundError: there is no such file.
        UslError: as `load_arrays`, or it is an archive of several.
    """
    arrays = load_arrays(path, where=where, content=content)
    if "" not in arrays:
        raise UslError(f"{where or path}: an archive of arrays, expected one array (.npy)")
    return arrays[""]


def check_records(path: str | Path) -> None:
    """Compare every record of a zip file, as `torch.save` writes it, with its checksum: `torch.load` does not.

    Raises:
        BadZipFile: a record is not what was written; other errors where the file is no zip, or none at all.
    """
    check_file(path)
    with zipfile.ZipFile(path) as records:
        bad = records.testzip()
    if bad is not None:
        raise zipfile.BadZipFile(f"checksum of {bad}")
