"""Several windows on one label file: which images each shows, and what became of the classes that it still shows."""

import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from usl_lightning.labels import LabelIndex

GONE = 10.0
"""Seconds after which a window that says nothing shows nothing any more."""

NAMED = ("answer", "class"), ("seen", "seen_class")
"""Of what a window sends: a class by its number, and by its name."""


class Windows:
    """What each window shows by now. Of the images of other windows, one takes the last."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[Collection[int], float]] = {}
        self._lock = threading.Lock()

    def note(self, window: str, images: Collection[int] | None = None) -> None:
        """Take these images for those that a window, by its name, shows now; None: it is there, and shows the same."""
        now = time.monotonic()
        with self._lock:
            live = {name: (shown, since) for name, (shown, since) in self._shown.items() if now - since < GONE}
            before, _ = live.get(window, ((), now))
            self._shown = {**live, window: (before if images is None else images, now)}

    def elsewhere(self, window: str) -> list[int]:
        """Images that other windows show, in order."""
        now = time.monotonic()
        live = [shown for name, (shown, since) in self._shown.items() if name != window and now - since < GONE]
        return sorted({image for shown in live for image in shown})


class Renamed:
    """Names that classes had, so that an answer by a name that has just gone lands on what that class is now."""

    def __init__(self) -> None:
        self._becomes: dict[str, str] = {}

    def note(self, before: str, name: str | None) -> None:
        """A class has another name, or is part of that class; None: it is deleted."""
        if name is not None and name != before:
            self._becomes[before] = name
        self._becomes.pop(before if name is None else name, None)  # what is called so is just that

    def by_name(self, body: Mapping[str, Any], index: LabelIndex) -> dict[str, Any]:
        """What a window sent, with the numbers that the classes it names have now; of one that is gone, as it was.

        An answer that was seen, and whose class is deleted, is none by now.
        """
        now = dict(body)
        for key, named in NAMED:
            name = body.get(named)
            if type(body.get(key)) is not int or not isinstance(name, str):
                continue
            while name not in index.classes and name in self._becomes:
                name = self._becomes[name]
            if name in index.classes:
                now |= {key: index.classes.index(name), named: name}
            elif key == "seen":
                now |= {key: None, named: None}
        return now
