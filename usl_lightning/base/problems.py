"""What can be seen to be wrong with the values of a configuration, without importing the classes that it names."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from usl_lightning.base import trainer
from usl_lightning.base.classes import ROOT, find_class, syntax_of
from usl_lightning.base.errors import did_you_mean
from usl_lightning.base.kinds import UNKNOWN, Kind, kind_of, kind_of_source
from usl_lightning.base.lineage import is_no
from usl_lightning.base.parameters import parameters, parameters_elsewhere, ranges_of, required_of

FROM_ELSEWHERE = {"image", "seed"}
"""Parameters that other parts of the configuration give."""

SWITCHES = ("compile", "activation_checkpointing")
"""What is true or false outside of the groups."""

GROUPS = {
    "trainer": "usl_lightning.engine.trainer.Trainer",
    "checkpoint": "usl_lightning.engine.checkpoints.Checkpoints",
    "processes": "usl_lightning.engine.processes.Processes",
}
"""Groups of parameters that name no class, and the class that declares their ranges."""

PLACES = {"model": "usl_lightning.models.method.Method", "data": "usl_lightning.data.modules.ImageData"}
"""Groups of parameters that name a class, and what that is, or descends from."""


def kind_at(tree: Mapping[str, Any], path: list[str]) -> Kind:
    """The kind of the value at a path of a configuration (without `init_args`), by the classes that it names.

    Args:
        tree: the configuration, nested, with its `class_path` and `init_args`.
        path: keys, as in `["model", "optimizer", "lr"]`.
    """
    if path[:1] == ["trainer"] and len(path) == 2:
        return kind_of_source(trainer.TYPES.get(path[1], ""))
    node: Any = tree
    known: Mapping[str, Kind] = {}
    kind = UNKNOWN
    for key in path:
        kind = known.get(key, UNKNOWN)
        node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and "class_path" in node:
            known = parameters(str(node["class_path"]))
            node = node.get("init_args", {})
        else:
            known = parameters(kind.group) if kind.group else {}
    return kind


def wrong_parameters(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """What can be seen to be wrong with the parameters of a configuration's classes without importing them.

    Args:
        tree: nested, with its `class_path` and `init_args`.

    Yields:
        The dotted key without `init_args`, what is wrong, and the names that are known beside it if it is none.
    """
    for group, path in PLACES.items():
        if isinstance(tree.get(group), Mapping):
            yield from _wrong(tree[group], Kind(of=path), group)
    for group in GROUPS:
        if not isinstance(tree.get(group, {}), Mapping):
            found = "null" if tree[group] is None else repr(tree[group])
            yield group, f"expected keys and values, found {found}", []
            return
    yield from _wrong_trainer(tree.get("trainer", {}))
    for key in SWITCHES:
        if problem := Kind(number="bool").problem(tree.get(key, False)):
            yield key, problem, []
    for group in GROUPS:
        yield from _wrong_group(group, tree.get(group, {}))


def _wrong_trainer(given: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """What only the Trainer's parameters may be: names it gives meaning to, and classes of its own kinds."""
    for key, value in given.items():
        for wrong, names in trainer.problems(key, value):
            yield f"trainer.{key}", wrong, names
        for class_path, arguments in trainer.classes(key, value):
            if "." in class_path and (no_class := _no_class(class_path) or _no_such(class_path, *trainer.KINDS[key])):
                yield f"trainer.{key}", no_class, []
            package = "" if "." in class_path else f"{trainer.KINDS[key][0].rpartition('.')[0]}."
            yield from _wrong({"class_path": package + class_path, "init_args": arguments}, UNKNOWN, f"trainer.{key}")


def _wrong_group(group: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    known = ranges_of(GROUPS[group])
    kinds = _trainer_kinds() if group == "trainer" else parameters(GROUPS[group])
    for key, value in given.items():
        if group != "trainer" and key not in known:
            yield f"{group}.{key}", f"unknown key '{key}'", sorted(known)
            continue
        kind = kinds.get(key, Kind(number="float") if key in known else UNKNOWN)
        optional = kind.optional or (group == "trainer" and key != "max_steps")
        if problem := replace(kind, optional=optional, range=known.get(key)).problem(value):
            yield f"{group}.{key}", problem, []


def wrong_options(class_path: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Options of a class whose values are wrong, nested ones too: the key and what is wrong.

    Args:
        class_path: `package.module.Class`.
        options: name -> value.
    """
    for key, problem, names in _wrong({"class_path": class_path, "init_args": options}, UNKNOWN, ""):
        if not names:
            yield key.removeprefix("."), problem


def _wrong(value: Any, kind: Kind, path: str) -> Iterator[tuple[str, str, list[str]]]:
    if kind.of and isinstance(value, str) and (kind.foreign or "." in value):
        value = {"class_path": value}
    if isinstance(value, Mapping) and ("class_path" in value or kind.group):
        class_path = str(value.get("class_path", kind.group))
        missing = _no_class(class_path) or (
            _no_such(class_path, kind.of or kind.group) if kind.of or kind.group else ""
        )
        if missing:
            yield f"{path}.class_path", missing, []
            return
        known, hands_on = parameters(class_path), False
        if not known:
            known, hands_on = parameters_elsewhere(class_path)
        arguments = value.get("init_args") or {} if "class_path" in value else value
        if not isinstance(arguments, Mapping):
            yield f"{path}.init_args", f"expected keys and values, found {arguments}", []
            return
        if kind.foreign and (needed := [name for name in required_of(class_path) if name not in arguments]):
            yield path, f"{class_path.rpartition('.')[2]} needs {', '.join(needed)}; give it", []
        for key, item in arguments.items():
            if key not in known and not hands_on:
                yield f"{path}.{key}", f"unknown key '{key}'", sorted({*known} - FROM_ELSEWHERE)
            else:
                yield from _wrong(item, known.get(key, UNKNOWN).beside(arguments), f"{path}.{key}")
    elif isinstance(value, list) and (kind.each or any(isinstance(item, Mapping) for item in value)):
        for number, item in enumerate(value):
            yield from _wrong(item, Kind(foreign=bool(kind.each), of=kind.each), f"{path}[{number}]")
    elif (kind.number or kind.each or not isinstance(value, Mapping)) and (problem := kind.problem(value)):
        yield path, problem, []


def _no_such(class_path: str, *kinds: str) -> str:
    """What to say of a name that is no dotted path, or of one that leads to a class of none of these kinds."""
    if class_path and "." not in class_path:
        return f"there is no class {class_path}; expected package.module.Class"
    if not all(is_no(class_path, kind) for kind in kinds):
        return ""
    names = " or ".join(kind.rpartition(".")[2] for kind in kinds)
    return f"{class_path} is no {names}; expected package.module.Class of one"


@cache
def _no_class(class_path: str) -> str:
    """What to say of a dotted path that leads to no class of this package, or to no package that is installed."""
    package, dot, _ = class_path.partition(".")
    module, _, name = class_path.rpartition(".")
    if class_path and not (dot or name[:1].isupper()):
        return f"there is no class {class_path}; expected package.module.Class"
    if package == ROOT.name:
        missing, tree = find_class(class_path) is None, syntax_of(module)
    else:
        missing, tree = dot != "" and package.isidentifier() and find_spec(package) is None, None
    if not missing:
        return ""
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)] if tree else []
    near = did_you_mean(name, classes) if tree or package != ROOT.name else _near_module(class_path.split(".")[1:])
    return f"there is no class {class_path}{near}"


def _near_module(names: list[str]) -> str:
    """What the first of some names below the package may be meant to be that is no module of it."""
    folder = ROOT
    for name in names:
        modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
        if name not in modules:
            return did_you_mean(name, sorted(modules))
        folder = folder / name
        if not folder.is_dir():
            break
    return ""


@cache
def _trainer_kinds() -> dict[str, Kind]:
    """Parameter of the Trainer -> what it takes, if that is numbers, or truth values, alone; or a table says it."""
    kinds = {name: kind_of(annotation, "") for name, annotation in trainer.annotations().items()}
    told = {name: kind_of_source(source) for name, source in {**trainer.TYPES, **trainer.TAKES}.items()}
    return {name: kind for name, kind in kinds.items() if kind.number} | told
