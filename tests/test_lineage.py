"""What sources tell of a class's kind is what the class itself says, of all that a configuration may name."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch

from usl_lightning.base import trainer
from usl_lightning.base.lineage import arguments_of, is_no

LIGHTNINGS = [f"pytorch_lightning.{name}" for name in ("callbacks", "loggers", "strategies", "profilers", "plugins")]
OTHERS = ["torch.nn", "torch.optim", "torchvision.transforms.v2", "usl_lightning.data.views.steps"]
KINDS = ["torch.nn.Module", "torch.optim.Optimizer", "usl_lightning.data.views.steps.Step"]


def loaded(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("module", [*LIGHTNINGS, *OTHERS])
def test_no_class_is_taken_for_one_of_another_kind(module: str) -> None:
    kinds = {kind: loaded(kind) for kind in [*KINDS, *(kind for each in trainer.KINDS.values() for kind in each)]}
    known = 0
    for name, found in inspect.getmembers(importlib.import_module(module), inspect.isclass):
        for kind, owner in kinds.items() if "_graveyard" not in found.__module__ else ():
            told = is_no(f"{module}.{name}", kind)
            assert not (told and issubclass(found, owner)), (name, kind)
            known += told or issubclass(found, owner)
    assert known > 10


def test_parameters_are_the_constructors() -> None:
    told = {name: arguments_of(f"torch.nn.{name}") for name, _ in inspect.getmembers(torch.nn, inspect.isclass)}
    known = {name: taken for name, taken in told.items() if taken is not None}
    assert len(known) > 80
    for name, taken in known.items():
        given = list(inspect.signature(getattr(torch.nn, name).__init__).parameters.values())[1:]
        assert taken.hands_on == (inspect.Parameter.VAR_KEYWORD in [each.kind for each in given]), name
        many = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        assert list(taken.annotations) == [each.name for each in given if each.kind not in many], name


THEIRS = """
from torch import nn
import torch.nn as other
from usl_lightning.semisup.fixmatch import FixMatch as Base

open("imported", "w").close()
Module = type("Module", (nn.Module,), {})

class View(nn.Module): pass
class Odd(other.Module, object): pass
class Made(Module): pass
class Mine(Base): pass
class Plain: pass
class Late(__import__("torch").nn.Module): pass
def view(): return View()
"""


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_views.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    module, method = "torch.nn.Module", "usl_lightning.models.method.Method"
    none = {name: is_no(f"their_views.{name}", module) for name in ("View", "Odd", "Made", "Mine", "Plain", "Late")}
    assert none == {"View": False, "Odd": False, "Made": False, "Mine": False, "Plain": True, "Late": False}
    assert is_no("their_views.view", module)
    assert is_no("their_views", module)
    assert is_no("their_views.Nothing", module)
    assert is_no("their_views.View", method)
    assert not is_no("their_views.Mine", method)
    assert "their_views" not in sys.modules
    assert not Path("imported").exists()
