"""Defaults that are read from sources: those that Python itself has once the class is imported."""

import importlib
import inspect
from typing import Any

import pytest

from usl_lightning.base.configs import load_yaml, shipped, shipped_folder
from usl_lightning.base.defaults import defaults
from usl_lightning.base.problems import FROM_ELSEWHERE
from usl_lightning.stage.words import StageCommand


def named() -> set[str]:
    """The classes of methods and data that shipped configurations name."""
    stages = [name for name in shipped() if not {"stages", "columns"} & load_yaml(shipped_folder() / name).keys()]
    flats = [StageCommand("fit", [shipped_folder() / name], {}).flat() for name in stages]
    return {str(flat[key]) for flat in flats for key in ("model.class_path", "data.class_path") if key in flat}


def listed(value: Any) -> Any:
    return [listed(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("path", sorted(named()))
def test_defaults_are_those_of_the_imported_class(path: str) -> None:
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    told = {key: value for key, value in defaults(path).items() if key not in FROM_ELSEWHERE}
    own = {key: listed(each.default) for key, each in parameters.items() if each.default is not inspect.Parameter.empty}
    assert told
    assert {key: told[key] for key in told.keys() & own.keys()} == {key: own[key] for key in told.keys() & own.keys()}
    plain = {key for key, value in own.items() if isinstance(value, int | float | str | None)} - FROM_ELSEWHERE
    assert not plain - told.keys()


def test_of_what_is_not_there_nothing_is_told() -> None:
    assert defaults("nowhere.Class") == {}
