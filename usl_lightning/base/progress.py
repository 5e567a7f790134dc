"""Bars for steps that take long."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from usl_lightning.base.machine import is_main_process

PATIENCE = 1.0
"""Seconds before a bar is shown: most steps are over by then."""


SHORTEST = 10
"""Characters of a bar that can be seen to move."""


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


def fitting(bar: "tqdm[Any]", texts: Sequence[str]) -> str:
    """The first of some texts, as many as leave room for the bar itself on its terminal.

    Args:
        bar: on a terminal.
        texts: to be said behind it.
    """
    state = {**bar.format_dict, "postfix": None, "ncols": None, "bar_format": "{l_bar}{r_bar}"}
    room = (bar.format_dict["ncols"] or 0) - len(tqdm.format_meter(**state)) - SHORTEST
    while texts and len(" ".join(texts)) + 2 > room:
        texts = texts[:-1]
    return " ".join(texts)


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
