"""Of which kind a class is, told by sources alone: its own and those of its bases, in this package and in others."""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A module, parsed.

    Attributes:
        tree: its syntax.
        module: its dotted path.
        package: what its relative imports are relative to.
    """

    tree: ast.Module
    module: str
    package: str


@dataclass(frozen=True)
class Definition:
    """What a dotted path leads to.

    Attributes:
        node: a class, or a function.
        source: where it is defined.
    """

    node: ast.stmt
    source: Source

    @property
    def path(self) -> str:
        """Where it is defined, dotted."""
        return f"{self.source.module}.{getattr(self.node, 'name', '')}"


@cache
def is_no(class_path: str, kind: str) -> bool:
    """Whether a dotted path certainly leads to no class that is, or descends from, another; nothing is imported.

    Sources do not tell all, as of what is compiled, or made as its module is imported: then it is not certain.

    Args:
        class_path, kind: `package.module.Class`.
    """
    if class_path.partition(".")[0] in sys.stdlib_module_names:
        return True
    wanted = definition(kind)
    return _descends(class_path, {kind, wanted.path if wanted else kind}) is False


@dataclass(frozen=True)
class Arguments:
    """What a constructor takes.

    Attributes:
        annotations: parameter -> what its type is said to be, and the module in which that means something.
        hands_on: it takes others too, and hands them on.
    """

    annotations: Mapping[str, tuple[ast.expr | None, str]]
    hands_on: bool


@cache
def arguments_of(class_path: str) -> Arguments | None:
    """What a class's constructor takes; None if the sources do not tell."""
    found = definition(class_path)
    if found is None or not isinstance(found.node, ast.ClassDef) or found.node.decorator_list:
        return None
    for line in found.node.body:
        if isinstance(line, ast.FunctionDef) and line.name in ("__init__", "__new__"):
            given = [*line.args.posonlyargs, *line.args.args, *line.args.kwonlyargs][1:]
            known = {each.arg: (each.annotation, found.source.module) for each in given}
            told = line.name == "__init__" and not line.decorator_list
            return Arguments(known, line.args.kwarg is not None) if told else None
    bases = bases_of(found)
    return arguments_of(bases[0]) if len(bases) == 1 else None


def constructor_of(node: ast.ClassDef) -> ast.FunctionDef | None:
    """A class's own `__init__`."""
    own = (line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == "__init__")
    return next(own, None)


def bases_of(found: Definition) -> list[str]:
    """The dotted paths of a class's bases, as far as its module tells."""
    bases = found.node.bases if isinstance(found.node, ast.ClassDef) else []
    return [path for base in bases for path in _meant(base, found.source)]


def constant(name: str, source: Source, depth: int = 0) -> tuple[ast.expr | None, Source]:
    """The expression that a name of a module is set to, and the module where that is; None if the sources do not tell.

    Args:
        name: without a dot.
        source: the module.
        depth: of the imports that led there.
    """
    for line in source.tree.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return line.value, source  # type: ignore[attr-defined]
    for known, origin in _imports(source) if depth < 20 else ():
        module, _, own = origin.rpartition(".")
        if known == name and (other := _source(module)) is not None:
            return constant(own, other, depth + 1)
    return None, source


def is_by_descent(class_path: str) -> bool:
    """Whether a dotted path leads to a class, and a class is one of these by descending from it alone."""
    found = definition(class_path)
    if found is None or not isinstance(found.node, ast.ClassDef):
        return False
    paths = bases_of(found)
    return class_path.partition(".")[0] not in sys.stdlib_module_names and not any(
        path.rpartition(".")[2] in ("Protocol", "TypedDict", "NamedTuple") for path in paths
    )


def _descends(class_path: str, kinds: set[str]) -> bool | None:
    """Whether a class is one of some, or has one among its bases; None: the sources do not tell."""
    if class_path in kinds:
        return True
    found = definition(class_path)
    if found is None:
        return False if _source(class_path) is not None or _has_no_such(class_path) else None
    if found.path in kinds:
        return True
    if not isinstance(found.node, ast.ClassDef):
        return False
    answers = [_of_base(base, found.source, kinds) for base in found.node.bases]
    return True if True in answers else None if None in answers else False


def _of_base(base: ast.expr, source: Source, kinds: set[str]) -> bool | None:
    if isinstance(base, ast.Subscript):  # Generic[T]
        base = base.value
    if isinstance(base, ast.Name) and base.id in ("object", "Exception"):
        return False
    paths = list(_meant(base, source))
    if paths and paths[0].partition(".")[0] in sys.stdlib_module_names:
        return False
    answers = [_descends(path, kinds) for path in paths]
    return True if True in answers else None if None in answers or not answers else False


def meant(annotation: ast.expr, module: str) -> str:
    """The dotted path of what a name, or `package.name`, means in a module; "" if its source does not tell."""
    source = _source(module)
    return next(_meant(annotation, source), "") if source is not None else ""


def _meant(node: ast.expr, source: Source) -> Iterator[str]:
    """The dotted paths that a name may mean in a module."""
    words = ast.unparse(node).split(".")
    if not all(map(str.isidentifier, words)):
        return
    paths = [path for name, path in _imports(source) if name == words[0]]
    if not paths and any(isinstance(line, ast.ClassDef) and line.name == words[0] for line in source.tree.body):
        paths = [f"{source.module}.{words[0]}"]
    yield from (".".join([path, *words[1:]]) for path in paths)


@cache
def definition(path: str, depth: int = 0) -> Definition | None:
    """What a dotted path leads to, through the imports that hand it on; None if no source says so."""
    module, _, name = path.rpartition(".")
    source = _source(module) if depth < 20 else None
    if source is None:
        return None
    for line in source.tree.body:
        if isinstance(line, ast.ClassDef | ast.FunctionDef) and line.name == name:
            return Definition(line, source)
    for known, origin in _imports(source):
        if known in (name, "*"):
            found = definition(origin if known == name else f"{origin}.{name}", depth + 1)
            if found is not None:
                return found
    return None


def _has_no_such(path: str) -> bool:
    """Whether a module is there and binds no such name, as far as its source shows all that it binds."""
    module, _, name = path.rpartition(".")
    source = _source(module)
    if source is None:
        return False
    bound = {line.id for line in ast.walk(source.tree) if isinstance(line, ast.Name)}
    bound |= {line.name for line in ast.walk(source.tree) if isinstance(line, ast.ClassDef | ast.FunctionDef)}
    bound |= {known for known, _ in _imports(source)}
    if bound & {name, "__getattr__", "globals", "setattr", "vars", "exec"}:
        return False
    return all(_has_no_such(f"{origin}.{name}") for known, origin in _imports(source) if known == "*")


@cache
def _imports(source: Source) -> tuple[tuple[str, str], ...]:
    """Each name that a module imports, `*` too, and where from."""
    found = []
    for line in ast.walk(source.tree):
        if isinstance(line, ast.ImportFrom):
            above = source.package.split(".")
            above = above[: len(above) - line.level + 1] if line.level else []
            origin = ".".join([*above, *([line.module] if line.module else [])])
            found += [(each.asname or each.name, f"{origin}.{each.name}".removesuffix(".*")) for each in line.names]
        elif isinstance(line, ast.Import):
            for each in line.names:
                top = each.name.partition(".")[0]
                found.append((each.asname, each.name) if each.asname else (top, top))
    return tuple(found)


@cache
def _source(module: str) -> Source | None:
    """A module's syntax, found without importing what it is in; None if there is none in Python."""
    top, *parts = module.split(".")
    try:
        spec = find_spec(top) if top.isidentifier() else None
        for number, _ in enumerate(parts, 1):
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = ".".join([top, *parts[:number]])
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, ImportError, RecursionError):
        return None
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    return Source(tree, module, package)
