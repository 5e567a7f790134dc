"""The one kind of error a user is meant to read."""

import difflib
from collections.abc import Iterable


class UslError(Exception):
    """A mistake the user can mend.

    The message is one line: what was wrong, where, what was expected, what to do. The command line prints
    it alone and exits with code 2; `--debug` adds the traceback.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
