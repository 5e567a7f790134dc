"""What a parameter takes, read from its annotation in the source: the front imports neither torch nor Lightning."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from usl_lightning.base.classes import ROOT, dotted, find_class, syntax_of
from usl_lightning.base.lineage import meant
from usl_lightning.base.ranges import Range


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
        return all(map(str.isidentifier, text.split("."))) and not (found and is_dataclass(found.node))


UNKNOWN = Kind()


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass, by its decorators."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def kind_of_source(annotation: str) -> Kind:
    """The kind that an annotation means as it is written, of builtin types alone; `UNKNOWN` for none."""
    return kind_of(ast.parse(annotation, mode="eval").body, "") if annotation else UNKNOWN


def kind_of(annotation: ast.expr | None, module: str) -> Kind:
    """The kind that an annotation means.

    Args:
        annotation: of a parameter; None if it has none.
        module: dotted path of where it stands, for the names in it; "": only builtin types are known.
    """
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
