"""What a stage reads of the disk is read once and handed on, and may not change between being noted and being used.

For what cannot be handed from caller to callee because the command line builds the objects in between. Only within
`noting`, which spans one stage: elsewhere everything is read whenever it is asked for. Imports nothing heavy.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of_file

T = TypeVar("T")
Stamp = tuple[int, int, int]
"""Modification time in ns, size and inode of a file: another one, another content."""

_kept: dict[Hashable, Any] | None = None


@contextmanager
def noting() -> Iterator[None]:
    """Within it what is read is kept."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def once(question: Hashable, answer: Callable[[], T], current: Callable[[T], bool] = lambda _: True) -> T:
    """What `answer` gives; within `noting`, what it gave to the same question before, if that is still `current`."""
    if _kept is None:
        return answer()
    if question not in _kept or not current(_kept[question]):
        _kept[question] = answer()
    known: T = _kept[question]
    return known


def read_once(what: str, path: str | Path, read: Callable[[], T]) -> T:
    """What `read` makes of a file that is taken for `what`; within `noting` read again only if it has changed.

    Raises:
        UslError: it has changed since its content was noted.
    """
    question = (what, os.path.abspath(path))
    found = once(question, lambda: (stamp_of(path), read()), lambda known: known[0] == stamp_of(path))
    as_noted(path)
    return found[1]


def note(*paths: str | Path) -> None:
    """The content of these files, as it is now, tells what the stage is: `as_noted` refuses another."""
    for path in paths:
        once(("noted", os.path.abspath(path)), partial(stamp_of, path))


def noted_hash(path: str | Path) -> str:
    """`sha256:…` of a file, noted; computed once.

    Raises:
        OSError: it cannot be read.
    """
    note(path)
    as_noted(path)
    return once(("sha256", os.path.abspath(path)), partial(sha256_of_file, path))


def as_noted(*paths: str | Path) -> None:
    """Called by whoever has read files: they still are what was noted, if they were.

    Raises:
        UslError: one has changed since.
    """
    for path in paths:
        noted = (_kept or {}).get(("noted", os.path.abspath(path)))
        if noted is not None and noted != stamp_of(path):
            raise changed(path)


def changed(path: str | Path) -> UslError:
    """Says that a file or folder is not what it was when the stage began."""
    return UslError(f"{path}: was changed while this run was starting; start it again")


def stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
