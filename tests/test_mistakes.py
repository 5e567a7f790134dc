"""Lines that reach the user from odd places: worker processes, YAML on the command line, help without a file."""

import json
from pathlib import Path

import pytest
import torch

from usl_lightning.base.commands import COMMANDS
from usl_lightning.base.errors import UslError
from usl_lightning.cli import _mistake, main
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry
from usl_lightning.selection.usl import USL


def test_a_workers_page_is_its_last_line() -> None:
    page = (
        "Caught UslError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nusl_lightning.base.errors.UslError: a/b.jpg: the file is damaged\n'
    )
    assert str(_mistake(UslError(page))) == "a/b.jpg: the file is damaged"


def test_a_bug_met_while_a_mistake_is_handled_is_a_bug() -> None:
    bug = KeyError("a bug")
    bug.__context__, bug.__suppress_context__ = UslError("a mistake"), True  # as `raise … from None` leaves it
    assert _mistake(bug) is None
    bug.__cause__ = UslError("a mistake")
    assert _mistake(bug) is bug.__cause__


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_value_that_is_no_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "select", "--config", "digits_usl.yaml", "--model.budget", "[1")
    assert "--model.budget" in line
    assert "not valid YAML" in line


def test_what_is_no_colour_stops_a_chain_before_its_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [{"name": "first", "command": "select", "config": "digits_random.yaml"}]
    stages += [{**stages[0], "name": "late", "set": {"data.background": "wite"}}]
    Path("chain.yaml").write_text(json.dumps({"stages": stages}))
    line = refused(capsys, "run", "chain.yaml")
    assert "stage late: data.background: 'wite' is no colour (did you mean 'white'?); expected a name" in line
    assert not Path("runs").exists()


@pytest.mark.parametrize("more", [["--help"], ["-h"], ["x", "--help"]])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_about_the_command(name: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And needs no file; each option has its line."""
    main([name, *more])
    told = capsys.readouterr().out
    assert told.startswith(f"usl {name}")
    assert told.count("usl ") < 5
    assert all(f"  --{option.name} {option.value}".rstrip() in told for option in COMMANDS[name].options)
    assert all(len(line) <= 120 for line in told.splitlines())


@pytest.mark.parametrize("name", ["init", "run", "report", "label", "doctor"])
def test_a_wrong_option_names_those_of_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operand = {"init": [str(tmp_path)], "run": ["digits_quickstart.yaml"], "report": ["."], "label": ["l.json"]}
    line = refused(capsys, name, *operand.get(name, []), "--frobnicate", "1")
    assert "unknown option --frobnicate" in line
    assert all(f"--{option.name}" in line for option in COMMANDS[name].options if "." not in option.name)


def test_features_of_another_size_are_refused(tmp_path: Path) -> None:
    encoder = Encoder("small_w16", ImageSpec(1, 8, 8, (0.5,), (0.5,)))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({ENTRY: encoder_entry(encoder, online="encoder."), "state_dict": state}, tmp_path / "a.ckpt")
    selector = USL(image=ImageSpec(1, 28, 28, (0.5,), (0.5,)), budget=3, init_from=str(tmp_path / "a.ckpt"))
    with pytest.raises(UslError, match=r"1×8×8 images, these are 1×28×28"):
        selector.setup("predict")
