"""The one kind of error a user is meant to read."""

import difflib
from collections.abc import Iterable

LONGEST_LINE = 2000
"""Characters of a message; of a longer one the middle is left out."""


class UslError(Exception):
    """A mistake the user can mend.

    The message is one line: what was wrong, where, what was expected, what to do. The command line prints
    it alone and exits with code 2; `--debug` adds the traceback. Whatever the names and values in it are, as text it is
    one line that can be printed, of `LONGEST_LINE` characters at most.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 501]}…{text[-500:]}"


def printable(text: str, longest: int | None = None) -> str:
    """A text on one line that does nothing to a terminal and is UTF-8; names in files may be anything.

    Args:
        text: any.
        longest: characters that are kept of it; None: all.
    """
    if longest is not None and len(text) > longest:
        text = f"{text[: longest - 1]}…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
