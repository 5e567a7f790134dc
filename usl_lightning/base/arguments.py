"""Words on the command line: `--key value`. Imports nothing heavy."""

import os
from collections.abc import Sequence
from pathlib import Path

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.ranges import SEED


def as_seed(value: str, where: str) -> int:
    """The seed that a text means.

    Raises:
        UslError: no whole number from 0 to 2³² − 1, which is what NumPy takes.
    """
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and SEED.problem(int(text)) is None):
        raise UslError(f"{where}: {text[:40]} is no seed; expected a whole number from {SEED}")
    return int(text)


def home(text: str) -> Path:
    """A path as typed, `~/` as the home folder."""
    return Path(os.path.expanduser(text))


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


def known_options(command: str, arguments: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """`options` of a command that knows these and no others.

    Raises:
        UslError: another one; it names the nearest.
    """
    given = dict(options(arguments))
    for key in given:
        if key not in known:
            some = f"; expected --{', --'.join(known)}" if known else "; it takes none"
            raise UslError(f"{command}: unknown option --{key}{did_you_mean(key, known)}{some}")
    return given
