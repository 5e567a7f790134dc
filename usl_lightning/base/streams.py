"""What is said never costs what is done: output that cannot be written is lost, and nothing else is.

A disk may be full, an output closed, a terminal without the character that is meant.
"""

import codecs
import io
import os
import sys
from typing import Any

_PLAIN = str.maketrans({"×": "x", "…": "...", "–": "-", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "·": "*", "’": "'"})


class Unfailing:
    """A text stream of this process of which a failed write is forgiven, and all that come after it are dropped.

    Args:
        stream: of a file descriptor.
        heeds_readers: a reader who has gone, as `head` does, is an error: nothing else is done but print.
    """

    def __init__(self, stream: io.TextIOWrapper, *, heeds_readers: bool) -> None:
        self._stream, self._heeds_readers = stream, heeds_readers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written; characters that the encoding lacks are spelled with others."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._forgive(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or give up."""
        try:
            self._stream.flush()
        except OSError as error:
            self._forgive(error)

    def _forgive(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError) and self._heeds_readers:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)  # takes what is buffered, and what other code may write
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def make_unfailing(*, heeds_readers: bool) -> None:
    """Have this process's output do so; what was closed becomes nowhere, so that no file is taken for it.

    Args:
        heeds_readers: see `Unfailing`; of the standard output.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    codecs.register_error("usl-plain", _spelled)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
        elif stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # someone listens
        stream.reconfigure(errors="usl-plain")
        setattr(sys, name, Unfailing(stream, heeds_readers=heeds_readers and name == "stdout"))


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(c if c.isascii() else c.encode("unicode_escape", "surrogatepass").decode() for c in text), error.end
