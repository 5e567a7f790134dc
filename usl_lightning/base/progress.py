"""Bars for steps that take long."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_len

from usl_lightning.base.machine import is_main_process

PATIENCE = 1.0
"""Seconds before a bar is shown: most steps are over by then."""


SHORTEST = 10
"""Characters of a bar that can be seen to move."""

FORMS = (
    "{l_bar}{bar}{r_bar}",
    "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
    "{l_bar}{bar}| {remaining}",
    "{desc}: {percentage:3.0f}% {remaining}",
    "{percentage:3.0f}%",
)
"""What a bar says, the most first: the first is shown that its terminal has room for."""


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that says less on a narrow terminal, where what it says would be cut and the bar be a character."""

    @property
    def format_dict(self) -> Any:
        """As tqdm formats it."""
        state = super().format_dict
        columns = state["ncols"] or 0

        def fits(form: str) -> bool:
            said = tqdm.format_meter(**{**state, "ncols": None, "bar_format": form.replace("{bar}", "")})
            return bool(disp_len(said) + SHORTEST * ("{bar}" in form) <= columns)

        return {**state, "bar_format": next(filter(fits, FORMS), FORMS[-1])} if columns else state


def progress(what: str, total: int, unit: str, *, done: int = 0) -> Bar:
    """A bar with the time left, shown on a terminal by the main process alone; it goes when it is closed.

    Args:
        what: is being done.
        total: steps until it is done.
        unit: of a step.
        done: steps that an earlier run has done.
    """
    hidden = None if is_main_process() else True  # None: unless stderr is a terminal
    return Bar(
        desc=what, total=total, initial=done, unit=unit, leave=False, disable=hidden, dynamic_ncols=True, delay=PATIENCE
    )


def fitting(bar: Bar, texts: Sequence[str]) -> str:
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
