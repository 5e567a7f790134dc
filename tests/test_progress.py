"""Bars: on a terminal, of the main process, with the time left; nothing anywhere else."""

import io
import logging
import time
from collections.abc import Callable
from contextlib import redirect_stderr

import pytest
import torch
from tqdm import tqdm

from usl_lightning.base import progress as module
from usl_lightning.base.progress import Bar, fitting, progress, shown
from usl_lightning.selection.usl import select_usl


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars are shown from the first moment on."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)


def on_terminal(work: Callable[[], object]) -> str:
    """What is shown on a terminal."""
    with redirect_stderr(Terminal()) as terminal:
        work()
    return terminal.getvalue()


def run() -> None:
    with progress("counting", 4, "step", done=1) as bar:
        for _ in range(2):
            time.sleep(0.12)  # tqdm shows ten states a second
            bar.update()


def test_a_bar_says_what_how_far_and_how_long() -> None:
    states = on_terminal(run).split("\r")
    assert any("counting" in state and "3/4" in state and "00:00<00:00" in state for state in states), states
    assert not states[-1].strip(), "it goes when it is closed"


def test_a_short_step_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    assert not on_terminal(run).strip()


def test_other_processes_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert on_terminal(run) == ""


def test_no_terminal_no_bar(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("usl_lightning"), "handlers", [])  # of a test that ran a command here
    run()
    select_usl(torch.rand(50, 4), 5)
    assert capfd.readouterr() == ("", "")


def test_slices_are_counted_in_rows() -> None:
    slices, given = [slice(0, 3), slice(3, 4)], list[slice]()
    assert "0/4" in on_terminal(lambda: given.extend(shown(slices, "rows", 4)))
    assert given == slices


def test_a_selection_shows_its_steps() -> None:
    text = on_terminal(lambda: select_usl(torch.rand(200, 4), 5))
    for step in ("neighbours", "k-means of 5 clusters", "regularised selection"):
        assert f"{step}:   0%" in text


@pytest.mark.parametrize(("columns", "shown"), [(80, 1), (120, 4), (40, 0), (200, 6)])
def test_metrics_leave_room_for_the_bar(monkeypatch: pytest.MonkeyPatch, columns: int, shown: int) -> None:
    texts = ["loss=0.123", "mask_rate=0.95", "lr=0.03", "temperature=0.07", "knn_accuracy=0.912", "std=0.1"]
    bar = Bar(desc="pretrain", total=1000, initial=400, unit="step", ncols=columns, file=Terminal())
    said = fitting(bar, texts)
    assert said.split() == texts[:shown]
    bar.set_postfix_str(said)
    drawn = str(bar)
    assert len(drawn) <= columns
    if columns >= 80:
        assert len(drawn.split("|")[1]) >= 10, drawn
    bar.close()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (70, "400/1000 [00:00<01:06,  9.00step/s]"), (50, "400/1000 [00:00<01:06]"), (30, "01:06"),
        (20, "pretrain:  40% 01:06"), (15, " 40%"),
    ],
)  # fmt: skip
def test_a_narrow_terminal_has_less_and_all_of_it(columns: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar(desc="pretrain", total=1000, initial=400, unit="step", ncols=columns, file=Terminal())
    state = {**bar.format_dict, "elapsed": 0.0, "rate": 9.0}
    monkeypatch.setattr(tqdm, "format_dict", state)
    drawn = str(bar)
    assert drawn.endswith(said), drawn
    assert len(drawn) <= columns
    assert "|" not in drawn or len(drawn.split("|")[1]) >= 10, drawn
    bar.disable = True
