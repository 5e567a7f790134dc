"""When a run is saved."""

import time

import pytest

from usl_lightning.engine.checkpoints import Timetable


def due(timetable: Timetable, *, saved: bool = True, first: int = 0, last: int = 9) -> list[int]:
    """The steps that are, in a run in which each of them is saved."""
    timetable.begin(first, last, saved=saved)
    found = [first] if timetable.due else []
    for step in range(first + 1, last + 1):
        timetable.plan(step, now=timetable.is_late)
        if timetable.due:
            found.append(step)
            timetable.saved(step)
    return found


def test_a_fixed_number_of_steps() -> None:
    assert due(Timetable(every_steps=3)) == [3, 6], "the last is saved when training ends"
    assert due(Timetable(every_steps=3), first=4) == [6]


def test_a_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10**6, 25))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    assert due(Timetable(every_minutes=1)) == [3, 6], "75 s, then 25 s until the next look"


def test_a_step_that_is_saved_without_its_validation_is_due() -> None:
    assert due(Timetable(every_steps=100), saved=False, first=4) == [4]
    assert due(Timetable(every_steps=100), saved=False, first=9) == []


def test_what_is_saved_is_known() -> None:
    timetable = Timetable()
    timetable.begin(4, 9, saved=True)
    assert timetable.has(4)
    timetable.begin(4, 9, saved=False)
    assert not timetable.has(4)
    timetable.saved(5)
    assert timetable.has(5)
    assert not timetable.due
