"""Bars for steps that take long."""

from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from usl_lightning.base.machine import is_main_process

PATIENCE = 1.0
"""Seconds before a bar is shown: most steps are over by then."""


def progress(what: str, total: int, unit: str, *, done: int = 0) -> "tqdm[Any]":
    """A bar with the time left, shown on a terminal by the main process alone; it goes when it is closed.

    Args:
        what: is being done.
        total: steps until it is done.
        unit: of a step.
        done: steps that an earlier run has done.
    """
    hidden = None if is_main_process() else True  # None: unless stderr is a terminal
    return tqdm(
        desc=what, total=total, initial=done, unit=unit, leave=False, disable=hidden, dynamic_ncols=True, delay=PATIENCE
    )


def counted(total: int, what: str, unit: str) -> Iterator[int]:
    """0, 1, … total - 1, with a bar."""
    with progress(what, total, unit) as bar:
        for number in range(total):
            yield number
            bar.update()


def shown(slices: Iterable[slice], what: str, total: int) -> Iterator[slice]:
    """Slices of `total` rows, with a bar of the rows that are done."""
    with progress(what, total, "row") as bar:
        for rows in slices:
            yield rows
            bar.update(rows.stop - rows.start)
