"""What a file of `torch.save` says beside its tensors, told without torch; nothing that it names is imported."""

import pickle
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from usl_lightning.base.arrays import DAMAGE

_LARGEST = 2**28
"""Bytes of what is beside the tensors; files above are left to torch."""


class _Object:
    """Stands for an object of any class but a dictionary."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass


class _Dictionary(dict[Any, Any]):
    """One that has attributes, as the dictionary of a module's weights has."""


class _Reader(pickle._Unpickler):
    """The one in Python: that in C takes gigabytes for a number of a few bytes."""

    def find_class(self, module: str, name: str) -> Any:
        return _Dictionary if (module, name) == ("collections", "OrderedDict") else _Object

    def persistent_load(self, pid: Any) -> Any:
        return None


@cache
def peek(path: str) -> Mapping[str, Any]:
    """The dictionary in a checkpoint, with nothing to be used in place of tensors; empty if torch has to tell.

    Args:
        path: of the file, whole.
    """
    try:
        with zipfile.ZipFile(path) as records:
            (name,) = (each for each in records.namelist() if each.count("/") == 1 and each.endswith("/data.pkl"))
            if records.getinfo(name).file_size > _LARGEST:
                return {}
            with records.open(name) as file:
                content = _Reader(file).load()
    except (*DAMAGE, pickle.UnpicklingError, IndexError, ImportError, UnicodeError):
        return {}
    return content if isinstance(content, dict) else {}
