"""`usl views`: a picture of the views that a configuration draws, on its own images."""

import importlib
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from usl_lightning.base.atomic import check_replaceable
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.opening import open_given
from usl_lightning.data.keys import Key
from usl_lightning.pictures.grid import view_grid
from usl_lightning.pictures.png import is_png_of
from usl_lightning.stage.next_command import as_typed
from usl_lightning.stage.words import StageCommand

COMMAND = "usl views"


def draw_views(stage: StageCommand, out: Path, *, images: int = 8, draws: int = 4) -> None:
    """Write a grid of `images` rows: an image, then `draws` of each view of the configuration.

    Args:
        stage: the configuration and its overrides.
        out: the PNG file.
        images: rows, evenly spaced over the training images.
        draws: independent draws of each view.

    Raises:
        UslError: the configuration has no view, or its images cannot be opened.
    """
    from usl_lightning.stage.parser import StageCLI

    check_replaceable(out, partial(is_png_of, COMMAND), f"{COMMAND}: --out")
    config = StageCLI(stage, build=False).resolved()
    recipes = _recipes(config["model"]["init_args"])
    if not recipes:
        raise UslError(f"{stage.configs[-1]}: its model draws no view")
    data: Mapping[str, Any] = config["data"]["init_args"]
    source = open_given(data)
    picks = torch.arange(min(images, len(source))) * len(source) // min(images, len(source))
    originals, key = source.read(picks), Key.of(config["seed_everything"], "picture", slots=picks)
    views: dict[str, Sequence[Tensor]] = {
        name: [recipe(originals, key.fold(name, draw)) for draw in range(draws)] for name, recipe in recipes.items()
    }
    view_grid(originals, views, out, command=COMMAND)
    print(f"{len(picks)} images, views {', '.join(recipes)}: {out}")
    configs = [word for path in stage.configs for word in ("--config", as_typed(path))]
    line = ["usl", "fit", *configs, *stage.override_arguments()]
    print(f"next: {shlex.join(line)} trains with them")


def _recipes(arguments: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Parameter name -> the view it describes."""
    return {
        name: _build(value)
        for name, value in arguments.items()
        if isinstance(value, Mapping) and str(value.get("class_path", "")).startswith("usl_lightning.data.views.")
    }


def _build(value: Any) -> Any:
    """Instances of every `class_path` in a resolved configuration."""
    if isinstance(value, Mapping) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        arguments = {key: _build(item) for key, item in (value.get("init_args") or {}).items()}
        return getattr(importlib.import_module(module), name)(**arguments)
    if isinstance(value, list):
        return [_build(item) for item in value]
    return value
