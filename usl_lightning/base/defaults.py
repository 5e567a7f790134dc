"""What a class takes for parameters that are not given, read from sources alone: nothing is imported."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from usl_lightning.base.lineage import Definition, Source, bases_of, constant, constructor_of, definition

_ARITHMETIC = (
    ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div,
    ast.UAdd, ast.USub, ast.Name, ast.Load,
)  # fmt: skip
"""What an expression may consist of whose value is told here."""


@cache
def defaults(class_path: str) -> Mapping[str, Any]:
    """Parameter -> default, as a configuration has it, where the sources tell; its bases' too, if they are handed on.

    Args:
        class_path: `package.module.Class`.
    """
    found = definition(class_path)
    if found is None or not isinstance(found.node, ast.ClassDef):
        return {}
    own = constructor_of(found.node)
    if own is None:
        return {**_of_bases(found), **dict(_values(_fields(found.node), found.source))}
    places = own.args.posonlyargs + own.args.args
    last = [each.arg for each in places[len(places) - len(own.args.defaults) :]]
    expressions: dict[str, ast.expr | None] = dict(zip(last, own.args.defaults, strict=True))
    expressions |= dict(zip([each.arg for each in own.args.kwonlyargs], own.args.kw_defaults, strict=True))
    taken = {each.arg for each in [*places, *own.args.kwonlyargs]} | _given_to_base(own)
    handed = _of_bases(found) if own.args.kwarg is not None else {}
    return {key: value for key, value in handed.items() if key not in taken} | dict(_values(expressions, found.source))


def _of_bases(found: Definition) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in reversed(bases_of(found)):
        merged |= defaults(path)
    return merged


def _fields(node: ast.ClassDef) -> dict[str, ast.expr | None]:
    """What the fields of a dataclass are set to; none of other classes."""
    lines = node.body if any("dataclass" in ast.unparse(each) for each in node.decorator_list) else []
    return {
        line.target.id: line.value
        for line in lines
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and not ast.unparse(line.annotation).startswith("ClassVar")
    }


def _given_to_base(own: ast.FunctionDef) -> set[str]:
    calls = (call for call in ast.walk(own) if isinstance(call, ast.Call))
    return {str(word.arg) for call in calls if ast.unparse(call.func) == "super().__init__" for word in call.keywords}


def _values(expressions: Mapping[str, ast.expr | None], source: Source) -> Iterator[tuple[str, Any]]:
    for name, expression in expressions.items():
        try:
            yield name, _listed(_value(expression, source))
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            continue  # its value is known once it is imported


def _value(expression: ast.expr | None, source: Source) -> Any:
    """What an expression of constants, by name or not, comes to.

    Raises:
        ValueError: the sources do not tell.
    """
    if expression is None or not all(isinstance(node, _ARITHMETIC) for node in ast.walk(expression)):
        raise ValueError("not of constants alone")
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}
    known = {name: _value(*constant(name, source)) for name in names}
    return eval(compile(ast.Expression(expression), "", "eval"), {"__builtins__": {}}, known)


def _listed(value: Any) -> Any:
    """A tuple is a list in a configuration."""
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
