"""What a person types: a number, a path, options."""

import os
from collections.abc import Sequence
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import SEED


def as_seed(value: str, where: str) -> int:
    """The seed that a text means.

    Raises:
        UslError: no whole number from 0 to 2³² − 1, which is what NumPy takes.
    """
    seed = as_count(str(value))
    if seed is None or SEED.problem(seed) is not None:
        raise UslError(f"{where}: {str(value)[:40]} is no seed; expected a whole number from {SEED}")
    return seed


def as_count(text: str) -> int | None:
    """The whole number, from 0, that a text of up to 18 digits says; None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def home(text: str) -> Path:
    """A path as typed, `~/` as the home folder.

    Raises:
        UslError: it is empty, which would mean the folder one is in.
    """
    if not text:
        raise UslError("an empty text is no path; for the folder one is in, type .")
    path = Path(os.path.expanduser(text))
    return path.absolute() if path.parts and path.parts[0].startswith("~") else path  # `./~` is a folder here


def options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--key value`, `--key=value` and `--flag` in the order given."""
    options: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or not word.lstrip("-"):
            raise UslError(f"unexpected argument '{word}'; expected --key value")
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        options.append((key, value))
    return options
