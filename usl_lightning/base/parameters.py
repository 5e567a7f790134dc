"""The types and ranges of a class's parameters, read from its source: the front imports neither torch nor Lightning.

What a class outside of this package takes is not known here; its values mean what YAML says.
"""

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from usl_lightning.base import ranges, trainer
from usl_lightning.base.classes import ROOT, ClassSource, dotted, find_class, syntax_of
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.lineage import arguments_of, is_by_descent, is_no, meant
from usl_lightning.base.ranges import SEED, Range


def as_seed(value: str, where: str) -> int:
    """The seed that a text means.

    Raises:
        UslError: no whole number from 0 to 2³² − 1, which is what NumPy takes.
    """
    seed = as_count(str(value))
    if seed is None or SEED.problem(seed) is not None:
        raise UslError(f"{where}: {str(value)[:40]} is no seed; expected a whole number from {SEED}")
    return seed


def as_count(text: str) -> int | None:
    """The whole number, from 0, that a text of up to 18 digits says; None for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def home(text: str) -> Path:
    """A path as typed, `~/` as the home folder.

    Raises:
        UslError: it is empty, which would mean the folder one is in.
    """
    if not text:
        raise UslError("an empty text is no path; for the folder one is in, type .")
    path = Path(os.path.expanduser(text))
    return path.absolute() if path.parts and path.parts[0].startswith("~") else path  # `./~` is a folder here


def options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--key value`, `--key=value` and `--flag` in the order given."""
    options: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or not word.lstrip("-"):
            raise UslError(f"unexpected argument '{word}'; expected --key value")
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        options.append((key, value))
    return options


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


@dataclass(frozen=True)
class Kind:
    """What a parameter takes.

    Attributes:
        text: a text is among it.
        texts: a list of texts is.
        optional: so is None.
        number: `float` or `int`, if it takes numbers of that type alone (None aside); or `bool`; else "".
        numbers: the same of a list of numbers.
        length: how many these are; 0: any.
        group: dotted path of a class of this package whose parameters are below it; or "".
        foreign: it takes an object of a class that is none of this package.
        of: dotted path of the class of which, or of whose descendants, that object is; "": not known.
        each: the same of a list's items; "": it takes no such list.
        choices: the texts that it takes, if there are only some.
        range: the numbers that it takes, if the class says so.
    """

    text: bool = False
    texts: bool = False
    optional: bool = False
    number: str = ""
    numbers: str = ""
    length: int = 0
    group: str = ""
    foreign: bool = False
    of: str = ""
    each: str = ""
    choices: tuple[str, ...] = ()
    range: Range | None = None

    def beside(self, values: Mapping[str, Any]) -> "Kind":
        """The kind once the class's other parameters are known: some ranges depend on them."""
        return self if self.range is None else replace(self, range=self.range.beside(values))

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value of this kind, as far as can be told without the class; None: nothing."""
        if value is None:
            one = self.text or self.texts or self.number or self.group or self.foreign or self.each
            needed = one and not self.optional
            return "expected a value, found null" if needed else None
        if (self.group or self.foreign) and not (isinstance(value, str) and self._may_name_a_class(value)):
            name = self.group.rpartition(".")[2]
            return f"expected {f'parameters of {name}' if name else 'keys and values'}, found {value}"
        if self.each and not isinstance(value, list):
            return f"expected a list of classes, as in [{{class_path: package.module.Class}}], found {value}"
        if self.texts and not self.text and not (isinstance(value, list) and all(isinstance(x, str) for x in value)):
            return f"expected a list of texts, as in [a, b], found {value}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(map(repr, self.choices))}, found {value}"
        if self.numbers and not self._is_list_of_numbers(value):
            many = f"{self.length} " if self.length else ""
            return f"expected a list of {many}numbers ({self.numbers}), found {value}"
        numbers: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
        right = numbers.get(self.number, (object,))
        if not isinstance(value, right) or (isinstance(value, bool) and self.number in ("int", "float")):
            return f"expected {self.number}, found {value}"
        return None if self.range is None else self.range.problem(value)

    def _is_list_of_numbers(self, value: Any) -> bool:
        single = Kind(number=self.numbers)
        is_list = isinstance(value, list) and self.length in (0, len(value))
        return is_list and not any(single.problem(item) for item in value)

    def _may_name_a_class(self, text: str) -> bool:
        found = find_class(self.group)
        return all(map(str.isidentifier, text.split("."))) and not (found and _is_dataclass(found.node))


UNKNOWN = Kind()


@cache
def parameters(class_path: str) -> Mapping[str, Kind]:
    """Name -> kind of each parameter of a class of this package; empty for all others.

    Args:
        class_path: `package.module.Class`.
    """
    allowed = _ranges(class_path)
    return {name: replace(kind, range=allowed.get(name)) for name, kind in _parameters(class_path).items()}


def kind_at(tree: Mapping[str, Any], path: list[str]) -> Kind:
    """The kind of the value at a path of a configuration (without `init_args`), by the classes that it names.

    Args:
        tree: the configuration, nested, with its `class_path` and `init_args`.
        path: keys, as in `["model", "optimizer", "lr"]`.
    """
    if path[:1] == ["trainer"] and len(path) == 2:
        return _kind_of_source(trainer.TYPES.get(path[1], ""))
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
    for key, value in tree.get("trainer", {}).items():
        for wrong, names in trainer.problems(key, value):
            yield f"trainer.{key}", wrong, names
        for class_path, given in trainer.classes(key, value):
            if "." in class_path and (no_class := _no_class(class_path) or _no_such(class_path, *trainer.KINDS[key])):
                yield f"trainer.{key}", no_class, []
            package = "" if "." in class_path else f"{trainer.KINDS[key][0].rpartition('.')[0]}."
            yield from _wrong({"class_path": package + class_path, "init_args": given}, UNKNOWN, f"trainer.{key}")
    for key in SWITCHES:
        if problem := Kind(number="bool").problem(tree.get(key, False)):
            yield key, problem, []
    for group, path in GROUPS.items():
        known = _ranges(path)
        kinds = _trainer_kinds() if group == "trainer" else parameters(path)
        for key, value in tree.get(group, {}).items():
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
            known, hands_on = _parameters_elsewhere(class_path)
        arguments = value.get("init_args") or {} if "class_path" in value else value
        if not isinstance(arguments, Mapping):
            yield f"{path}.init_args", f"expected keys and values, found {arguments}", []
            return
        if kind.foreign and (needed := [name for name in _required(class_path) if name not in arguments]):
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
def _parameters_elsewhere(class_path: str) -> tuple[Mapping[str, Kind], bool]:
    """Name -> kind, of numbers, names and classes, of each parameter of another package's class; if it takes others."""
    taken = None if find_class(class_path) else arguments_of(class_path)
    kinds = {name: _kind(*annotation) for name, annotation in taken.annotations.items()} if taken else {}
    return {
        name: Kind(optional=True, number=kind.number, choices=kind.choices, of=kind.of * is_by_descent(kind.of))
        for name, kind in kinds.items()
    }, taken is None or taken.hands_on


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
    kinds = {name: _kind(annotation, "") for name, annotation in trainer.annotations().items()}
    told = {name: _kind_of_source(source) for name, source in {**trainer.TYPES, **trainer.TAKES}.items()}
    return {name: kind for name, kind in kinds.items() if kind.number} | told


@cache
def _parameters(class_path: str) -> dict[str, Kind]:
    found = find_class(class_path)
    if found is None:
        return {}
    own = _own(found)
    if own is None:  # no constructor: a dataclass, or its bases'
        fields = {name: _kind(annotation, found.module) for name, annotation in _fields(found.node)}
        return {**_of_bases(found), **fields} if _is_dataclass(found.node) else _of_bases(found)
    names, passes_on, given = own
    handed = {name: kind for name, kind in _of_bases(found).items() if name not in given} if passes_on else {}
    return {**handed, **names}


@cache
def _ranges(class_path: str) -> dict[str, Range]:
    """Parameter -> range, as a class of this package and its bases declare them."""
    found = find_class(class_path)
    if found is None:
        return {}
    declared: dict[str, Range] = {}
    for base in reversed(found.node.bases):
        declared |= _ranges(dotted(base, found.module) or "")
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
            kinds = {each.arg: _kind(each.annotation, found.module) for each in given}
            calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
            to_base = (call for call in calls if ast.unparse(call.func) == "super().__init__")
            return kinds, node.args.kwarg is not None, {str(word.arg) for call in to_base for word in call.keywords}
    return None


@cache
def _required(class_path: str) -> tuple[str, ...]:
    """Parameters without a default of the constructor of a class of this package, or of its nearest base's."""
    found = find_class(class_path)
    for line in found.node.body if found else ():
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            places = line.args.args[1 : len(line.args.args) - len(line.args.defaults)]
            words = zip(line.args.kwonlyargs, line.args.kw_defaults, strict=True)
            return tuple(each.arg for each in [*places, *(word for word, default in words if default is None)])
    bases = (dotted(base, found.module) for base in found.node.bases) if found else ()
    return next((names for path in bases if path and (names := _required(path))), ())


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id != "ranges":
            yield line.target.id, line.annotation


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _kind_of_source(annotation: str) -> Kind:
    return _kind(ast.parse(annotation, mode="eval").body, "") if annotation else UNKNOWN


def _kind(annotation: ast.expr | None, module: str) -> Kind:
    members = list(_members(annotation, module))
    names = {member for member in members if member != "None"}
    optional = len(names) < len(set(members))
    choices = tuple(name[1:] for name in members if name.startswith("="))
    texts = bool(names & {"list[str]", "tuple[str, ...]", "Sequence[str]"})
    if choices and len(choices) == len(names):
        return Kind(text=True, optional=optional, choices=choices)
    if choices or texts or names & {"str", "Path", "PathLike"}:
        return Kind(text=bool(choices or names & {"str", "Path", "PathLike"}), texts=texts, optional=optional)
    if len(names) == 1 and names <= {"int", "float", "bool"}:
        return Kind(optional=optional, number=names.pop())
    if names == {"int", "float"}:
        return Kind(optional=optional, number="float")
    listed = re.fullmatch(r"(?:tuple|list|Sequence)\[((?:(?:int|float|\.\.\.)(?:, )?)+)\]", "|".join(names))
    if listed:
        items = listed[1].split(", ")
        of_one_length = listed[0].startswith("tuple") and items[-1] != "..."
        kinds = {*items} - {"..."}
        return Kind(
            optional=optional, numbers="float" if "float" in kinds else "int", length=len(items) if of_one_length else 0
        )
    item = re.fullmatch(r"(?:list|Sequence)\[([A-Z]\w*)\]", "|".join(names))
    if item and module and (each := meant(ast.Name(item[1]), module)) and find_class(each):
        return Kind(optional=optional, each=each)
    groups = [name for name in names if name.startswith(f"{ROOT.name}.")]
    foreign = bool(names) and all(name[0].isupper() and name.isidentifier() and name != "Any" for name in names)
    of = _class_of(annotation, module) if foreign and module else ""
    return Kind(optional=optional, group=groups[0] if len(groups) == len(names) == 1 else "", foreign=foreign, of=of)


def _class_of(annotation: ast.expr | None, module: str) -> str:
    """Dotted path of the only class of a union, None aside; "" if there are several, or it is not known."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _class_of(ast.parse(annotation.value, mode="eval").body, module)
    sides: list[ast.expr] = []
    if isinstance(annotation, ast.BinOp):
        sides = [annotation.left, annotation.right]
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Optional", "Union"):
        sides = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if sides:
        types = [side for side in sides if not (isinstance(side, ast.Constant) and side.value is None)]
        return _class_of(types[0], module) if len(types) == 1 else ""
    return meant(annotation, module) if isinstance(annotation, ast.Name | ast.Attribute) else ""


def _members(annotation: ast.expr | None, module: str) -> Iterator[str]:
    """Names of the types of a union; a class of this package by its dotted path, a text of a Literal as `=text`."""
    if isinstance(annotation, ast.BinOp):
        yield from _members(annotation.left, module)
        yield from _members(annotation.right, module)
    elif isinstance(annotation, ast.Constant):
        if isinstance(annotation.value, str):
            yield from _members(ast.parse(annotation.value, mode="eval").body, module)
        else:
            yield "None"
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Optional", "Union"):
        yield from ("None",) if ast.unparse(annotation.value) == "Optional" else ()
        for member in annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]:
            yield from _members(member, module)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
        elements = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        for element in elements:
            value = element.value if isinstance(element, ast.Constant) else ""
            yield "None" if value is None else f"={value}" if isinstance(value, str) else type(value).__name__
    elif isinstance(annotation, ast.Name | ast.Attribute):
        path = dotted(annotation, module) if module else None
        alias = _alias(path) if path else None
        if alias is not None:
            yield from _members(*alias)
        else:
            yield path if path and find_class(path) else ast.unparse(annotation).rpartition(".")[2]
    elif annotation is not None:
        yield ast.unparse(annotation)


def _alias(path: str) -> tuple[ast.expr, str] | None:
    """The expression that a name of this package stands for, as `Schedule = Literal[…]` does, and its module."""
    module, _, name = path.rpartition(".")
    tree = syntax_of(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value, module
    return None
