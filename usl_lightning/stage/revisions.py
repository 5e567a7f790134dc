"""The revision of each class of a configuration: which state of its mathematics it is. Imports none of them.

A class of this package whose results change says so in its body, `revision = 2`; a run begun before is not continued
then. What a class is made of counts with it: its bases, and the classes that it calls by name.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from usl_lightning.base.classes import ROOT, dotted, find_class

_CLASS = re.compile(rf"{ROOT.name}(\.\w+)+\.[A-Z]\w*")


def revisions(flat: Mapping[str, Any]) -> dict[str, int]:
    """`{"model.view.revision": 2}`, for each class of this package in model and data that is past its first revision.

    Args:
        flat: a configuration as dotted keys; lists may hold classes too (`model.view.steps.0.revision`).
    """
    found = {}
    for key, value in flat.items():
        if key.partition(".")[0] in ("model", "data"):
            for place, path in _classes(key, value):
                if (revision := revision_of(path)) > 1:
                    found[f"{place}.revision"] = revision
    return found


def revision_of(class_path: str) -> int:
    """1, and more for each time the mathematics of a class, or of one that it is made of, were changed.

    Args:
        class_path: `package.module.Class`; one of another package is 1.
    """
    seen: dict[tuple[str, str], int] = {}
    _add(class_path, seen)
    return 1 + sum(revision - 1 for revision in seen.values())


def class_at(fields: Mapping[str, Any], place: str) -> str:
    """The class path at a place of a flat configuration (`model.view`); the place itself if none is there."""
    for key, value in fields.items():
        for where, path in _classes(key, value):
            if where == place:
                return path
    return place


def _classes(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """(place, class path) of all classes of this package in a value; a class without arguments may be a mere text."""
    if isinstance(value, str) and _CLASS.fullmatch(value):
        yield place.removesuffix(".class_path"), value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _classes(place if name == "init_args" else f"{place}.{name}", item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _classes(f"{place}.{number}", item)


def _add(class_path: str, seen: dict[tuple[str, str], int]) -> None:
    """Note the revision of a class and of all that it is made of."""
    found = find_class(class_path)
    if found is None or (found.module, found.node.name) in seen:
        return
    seen[found.module, found.node.name] = _own(found.node)
    called = [node.func for node in ast.walk(found.node) if isinstance(node, ast.Call)]
    for part in (*found.node.bases, *called):
        if isinstance(part, ast.Name) and part.id[0].isupper() and (path := dotted(part, found.module)):
            _add(path, seen)


def _own(found: ast.ClassDef) -> int:
    """What the class itself says; 1 if it says nothing."""
    for line in found.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id == "revision":
            return int(ast.literal_eval(line.value))  # type: ignore[attr-defined]
    return 1
