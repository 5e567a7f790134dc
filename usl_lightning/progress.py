"""Bars for steps that take long."""

from typing import Any

from tqdm import tqdm

from usl_lightning.launch import is_main_process

PATIENCE = 1.0
"""Seconds before a bar is shown: most steps are over by then."""


def progress(what: str, total: int, unit: str) -> "tqdm[Any]":
    """A bar with the time left, shown on a terminal by the main process alone; it goes when it is closed.

    Args:
        what: is being done.
        total: steps until it is done.
        unit: of a step.
    """
    hidden = None if is_main_process() else True  # None: unless stderr is a terminal
    return tqdm(desc=what, total=total, unit=unit, leave=False, disable=hidden, dynamic_ncols=True, delay=PATIENCE)
