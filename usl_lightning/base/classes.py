"""The source of a class of this package, found by its dotted path without importing it, and where older paths lead."""

import ast
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

MOVED = {
    "usl_lightning.data.steps": "usl_lightning.data.views.steps",
    "usl_lightning.data.randaugment": "usl_lightning.data.views.randaugment",
    "usl_lightning.data.modules.NeighborData": "usl_lightning.features.neighbor_data.NeighborData",
}
"""Modules and classes, by their earlier names."""

_EARLIER = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, MOVED))})(?!\w)")


def moved_text(text: str) -> str:
    """A text, such as that of a configuration file, with the present name of every class that has moved."""
    return _EARLIER.sub(lambda earlier: MOVED[earlier[0]], text)


def moved(value: Any) -> Any:
    """The same of all texts in a nested value."""
    if isinstance(value, str):
        return moved_text(value)
    if isinstance(value, Mapping):
        return {key: moved(item) for key, item in value.items()}
    return [moved(item) for item in value] if isinstance(value, list) else value


ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class ClassSource:
    """Where a class is defined.

    Attributes:
        node: its definition.
        module: dotted path of its module.
    """

    node: ast.ClassDef
    module: str


@cache
def find_class(class_path: str) -> ClassSource | None:
    """Where a class of this package is defined, through the imports that hand it on; None of all others.

    Args:
        class_path: `package.module.Class`.
    """
    module, _, name = class_path.rpartition(".")
    tree = syntax_of(module)
    if tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ClassSource(node, module)
    path = _imported(name, module)
    return find_class(path) if path and path != class_path else None


@cache
def syntax_of(module: str) -> ast.Module | None:
    """The syntax of a module of this package; None of all others."""
    package, *parts = module.split(".")
    if package != ROOT.name or not all(part.isidentifier() for part in parts):
        return None
    path = ROOT.joinpath(*parts)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if os.path.isfile(file):  # a name may be longer than any file has
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def dotted(node: ast.expr, module: str) -> str | None:
    """The dotted path of what a name in a module means, if it is of this package."""
    if not isinstance(node, ast.Name):
        return None
    path = _imported(node.id, module) or f"{module}.{node.id}"
    return path if path.startswith(ROOT.name) else None


def _imported(name: str, module: str) -> str | None:
    tree = syntax_of(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}"
    return None
