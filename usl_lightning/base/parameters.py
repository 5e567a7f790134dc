"""The parameters of classes, their types and ranges, read from the source: neither torch nor Lightning is imported.

What a class outside of this package takes is not known here; its values mean what YAML says.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

from usl_lightning.base import ranges
from usl_lightning.base.classes import ClassSource, dotted, find_class
from usl_lightning.base.kinds import Kind, is_dataclass, kind_of
from usl_lightning.base.lineage import arguments_of, is_by_descent
from usl_lightning.base.ranges import Range


@cache
def parameters(class_path: str) -> Mapping[str, Kind]:
    """Name -> kind of each parameter of a class of this package; empty for all others.

    Args:
        class_path: `package.module.Class`.
    """
    allowed = ranges_of(class_path)
    return {name: replace(kind, range=allowed.get(name)) for name, kind in _parameters(class_path).items()}


@cache
def _parameters(class_path: str) -> dict[str, Kind]:
    found = find_class(class_path)
    if found is None:
        return {}
    own = _own(found)
    if own is None:  # no constructor: a dataclass, or its bases'
        fields = {name: kind_of(annotation, found.module) for name, annotation in _fields(found.node)}
        return {**_of_bases(found), **fields} if is_dataclass(found.node) else _of_bases(found)
    names, passes_on, given = own
    handed = {name: kind for name, kind in _of_bases(found).items() if name not in given} if passes_on else {}
    return {**handed, **names}


@cache
def ranges_of(class_path: str) -> dict[str, Range]:
    """Parameter -> range, as a class of this package and its bases declare them."""
    found = find_class(class_path)
    if found is None:
        return {}
    declared: dict[str, Range] = {}
    for base in reversed(found.node.bases):
        declared |= ranges_of(dotted(base, found.module) or "")
    for line in found.node.body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "ranges" and line.value is not None:
            declared |= eval(ast.unparse(line.value), {"__builtins__": {}}, vars(ranges))
    return declared


def verbs_of(class_path: str) -> tuple[str, ...]:
    """The commands that a method of this package is for, as its class or the nearest base says; none of others."""
    return _declared(class_path, "verbs") or ()


def needs_of(class_path: str) -> tuple[str, ...]:
    """What a class of this package cannot do without, as it or the nearest base says; none of others.

    Returns:
        The names of parameters; `"labels or oracle_labels"` is one of several.
    """
    return _declared(class_path, "needs") or ()


def up_to_images_of(class_path: str) -> tuple[str, ...]:
    """Parameters that the number of images is the most of, as a class of this package or the nearest base says."""
    return _declared(class_path, "up_to_images") or ()


@cache
def required_of(class_path: str) -> tuple[str, ...]:
    """Parameters without a default of a class of this package, and of its bases' that it hands on."""
    found = find_class(class_path)
    if found is None:
        return ()
    bases = (dotted(base, found.module) for base in found.node.bases)
    handed = next((names for path in bases if path and (names := required_of(path))), ())
    for line in found.node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            places = line.args.args[1 : len(line.args.args) - len(line.args.defaults)]
            words = zip(line.args.kwonlyargs, line.args.kw_defaults, strict=True)
            own = [each.arg for each in [*places, *(word for word, default in words if default is None)]]
            taken, passes_on, given = _own(found) or ({}, False, set())
            return (*own, *(name for name in handed if passes_on and name not in {*taken, *given}))
    return handed


@cache
def parameters_elsewhere(class_path: str) -> tuple[Mapping[str, Kind], bool]:
    """Name -> kind, of numbers, names and classes, of each parameter of another package's class; if it takes others."""
    taken = None if find_class(class_path) else arguments_of(class_path)
    kinds = {name: kind_of(*annotation) for name, annotation in taken.annotations.items()} if taken else {}
    return {
        name: Kind(optional=True, number=kind.number, choices=kind.choices, of=kind.of * is_by_descent(kind.of))
        for name, kind in kinds.items()
    }, taken is None or taken.hands_on


@cache
def _declared(class_path: str, name: str) -> tuple[str, ...] | None:
    """The texts that a class of this package, or the nearest base, has under a name; None: it has not."""
    found = find_class(class_path)
    for line in found.node.body if found else ():
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(line.value, ast.Tuple):  # type: ignore[attr-defined]
            return tuple(ast.literal_eval(line.value))  # type: ignore[attr-defined]
    bases = (dotted(base, found.module) for base in found.node.bases) if found else ()
    declared = (_declared(path, name) for path in bases if path)
    return next((texts for texts in declared if texts is not None), None)


def _of_bases(found: ClassSource) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for base in reversed(found.node.bases):
        path = dotted(base, found.module)
        kinds |= _parameters(path) if path else {}
    return kinds


def _own(found: ClassSource) -> tuple[dict[str, Kind], bool, set[str]] | None:
    """Parameters of the class's own constructor, whether it hands others to its base, and which it gives it itself."""
    for node in found.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1:]
            kinds = {each.arg: kind_of(each.annotation, found.module) for each in given}
            calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
            to_base = (call for call in calls if ast.unparse(call.func) == "super().__init__")
            return kinds, node.args.kwarg is not None, {str(word.arg) for call in to_base for word in call.keywords}
    return None


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id != "ranges":
            yield line.target.id, line.annotation
