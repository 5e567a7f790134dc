"""When a run is saved."""

import time


class Timetable:
    """Says of each step whether it is to be saved: after so many steps, after so long, or because the run is to stop.

    Args:
        every_minutes: time between two saves.
        every_steps: a fixed number of steps between them instead.

    Attributes:
        step: the one that was done last.
        due: it is to be saved: at once, or when it has been validated. The last of a run never is: it is saved when
            training ends, with all its metrics.
    """

    def __init__(self, every_minutes: float = 5.0, every_steps: int | None = None) -> None:
        self.every_minutes, self.every_steps = every_minutes, every_steps
        self.step, self.due = -1, False
        self._saved, self._time, self._last = -1, 0.0, -1

    def begin(self, step: int, last: int, *, saved: bool) -> None:
        """Start at a step.

        Args:
            step: optimizer steps done.
            last: as many as the run takes.
            saved: there is nothing to be added to what is saved of the step; else it is due.
        """
        self.step, self._last = step, last
        self.saved(step)
        if not saved:
            self._saved, self.due = -1, step != last

    @property
    def is_late(self) -> bool:
        """Whether the time is up, by the clock of this process."""
        return self.every_steps is None and time.monotonic() - self._time >= 60 * self.every_minutes

    def plan(self, step: int, *, now: bool) -> None:
        """Decide whether a step that is done is due.

        Args:
            step: the same on every process.
            now: it is, whatever its number.
        """
        self.step = step
        self.due = (now or (self.every_steps is not None and step % self.every_steps == 0)) and step != self._last

    def saved(self, step: int) -> None:
        """A step is."""
        self._saved, self._time, self.due = step, time.monotonic(), False

    def has(self, step: int) -> bool:
        """Whether a step is the one that was saved last."""
        return step == self._saved
