"""Private names of Lightning, torch and jsonargparse: `engine/` alone uses them, a list says which and why."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from usl_lightning.engine.private import PRIVATE, PrivateName

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "usl_lightning"
LIBRARIES = ("torch", "pytorch_lightning", "lightning_fabric", "jsonargparse")
OWN = ("self", "cls")
BY_TEXT = ("getattr", "setattr", "hasattr", "delattr")
NAMED_TUPLE = ("_asdict", "_field_defaults", "_fields", "_make", "_replace")
"""Public: the underscore keeps them apart from the fields."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def of_library(path: str | None) -> bool:
    return (path or "").split(".")[0] in LIBRARIES


def private_parts(path: str | None) -> set[str]:
    """Those of a dotted path into one of the libraries."""
    return {part for part in str(path).split(".") if is_private(part)} if of_library(path) else set()


def roots(tree: ast.AST) -> dict[str, str]:
    """What each imported name is of."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    return found


def root(node: ast.expr) -> str | None:
    """The name that a chain of attributes, calls and subscripts begins with."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return None
    return node.id


def is_own(node: ast.expr) -> bool:
    """`self`, `cls` or `super()`: the classes tell whose attributes those are."""
    return (isinstance(node, ast.Name) and node.id in OWN) or ast.unparse(node) == "super()"


def used_on_own(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Private names of a class that it defines or uses on itself, and whether it reads them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_own(node.value) and is_private(node.attr):
            yield node.attr, isinstance(node.ctx, ast.Load)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and is_private(node.name):
            yield node.name, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_private(node.id):
            yield node.id, False


def used_on_others(tree: ast.AST) -> Iterator[str]:
    """Private names in imports, and of what is not imported from elsewhere or defined in this file."""
    imported = roots(tree)
    defined = {name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for name, _ in used_on_own(node)}

    def is_foreign(owner: ast.expr) -> bool:
        source = imported.get(str(root(owner)))
        if source is None or of_library(source):
            return True
        # What a function or class of ours makes may be of a library.
        return source.split(".")[0] == PACKAGE.name and not isinstance(owner, ast.Name)

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from private_parts(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from private_parts(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+(\.\w+)+", str(node.value)):
            yield from private_parts(str(node.value))
        elif isinstance(node, ast.Attribute):
            if is_private(node.attr) and not is_own(node.value) and is_foreign(node.value) and node.attr not in defined:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_TEXT:
            text = ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else ""
            if is_private(text) and is_foreign(node.args[0]) and text not in defined:
                yield text


@cache
def names_of_class(kind: type) -> frozenset[str]:
    """Private names that a class of a library defines, or sets on its objects."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # it is no Python
        source = ""
    return frozenset({*filter(is_private, vars(kind)), *re.findall(r"\bself\.(_[a-zA-Z]\w*)", source)})


def inherited(module: str, tree: ast.Module) -> Iterator[str]:
    """Private names that classes have from a base of a library, or that they set for others to read."""
    read = {
        name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for name, loads in used_on_own(node) if loads
    }
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not node.bases:
            continue
        bases = [kind for kind in getattr(import_module(module), node.name).__mro__ if of_library(kind.__module__)]
        theirs = {name for kind in bases for name in names_of_class(kind)}
        own = {name for name, _ in used_on_own(node)}
        yield from own & theirs
        stored = {
            each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        }
        yield from (name for name in own & stored - read if bases)


def used() -> dict[str, set[str]]:
    """Private names by the file that uses them."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module != PrivateName.__module__:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[module] = {*used_on_others(tree), *inherited(module, tree)}
    return {module: names for module, names in found.items() if names}


def exists(path: str) -> bool:
    """Whether a name is there in what is installed; that of an attribute, in its class or set by it."""
    owner, _, name = path.rpartition(".")
    place, rest = owner, []
    while True:
        try:
            found = import_module(place)
            break
        except ModuleNotFoundError:
            place, _, last = place.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return hasattr(found, name) or (isinstance(found, type) and any(name in names_of_class(k) for k in found.__mro__))


def test_only_the_engine_uses_them() -> None:
    assert {module: names for module, names in used().items() if module.split(".")[1] != "engine"} == {}


def test_the_list_is_what_is_used() -> None:
    assert {name for names in used().values() for name in names} == {entry.name.split(".")[-1] for entry in PRIVATE}
    assert all(of_library(entry.name) and len(entry.why) > 20 for entry in PRIVATE)


@pytest.mark.parametrize("entry", PRIVATE, ids=lambda entry: entry.name.split(".")[-1])
def test_each_is_there_in_what_is_installed(entry: PrivateName) -> None:
    library = entry.name.split(".")[0]
    installed = import_module(library).__version__
    assert exists(entry.name), f"{entry.name} was in {library} {entry.version}, it is not in {installed}: {entry.why}"


def test_a_name_that_has_gone_is_missed() -> None:
    assert not exists("torch.nn.modules.batchnorm._NoSuchNorm")
    assert not exists("pytorch_lightning.Trainer._no_such_connector")
    assert not exists("pytorch_lightning.no_such_module.Class._name")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import torch._dynamo", {"_dynamo"}),
        ("from torch._subclasses import FakeTensor", {"_subclasses"}),
        ("from torch.nn.modules.batchnorm import _BatchNorm as Norm", {"_BatchNorm"}),
        ("import torch\ntorch._foreach_lerp_(a, b, 1)", {"_foreach_lerp_"}),
        ("from torch import nn\nisinstance(m, nn.modules.batchnorm._BatchNorm)", {"_BatchNorm"}),
        ("trainer.fit_loop._should_accumulate()", {"_should_accumulate"}),
        ("trainer.strategies[0]._launcher = None", {"_launcher"}),
        ("make()._timeout", {"_timeout"}),
        ("(a or b)._timeout", {"_timeout"}),
        ("class A:\n  def f(self): self.trainer._connector.x()", {"_connector"}),
        ("getattr(strategy, '_layer_sync', None)", {"_layer_sync"}),
        ("patch('torch.nn.modules.batchnorm._BatchNorm')", {"_BatchNorm"}),
        ("from usl_lightning.engine.trainer import Trainer\nTrainer()._fit()", {"_fit"}),
        ("from usl_lightning.labels import files\nfiles._KEYS", set()),
        ("image._replace(size=3)", set()),
        ("import os\nos._exit(2)\nsuper().__init__()\nx.__class__", set()),
        ("from usl_lightning.base.version import __version__", set()),
        ("class A:\n  def __init__(self): self._x = 1\n  def f(self, other): return self._x == other._x", set()),
    ],
)
def test_uses_are_found(line: str, names: set[str]) -> None:
    assert set(used_on_others(ast.parse(line))) == names


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("self._trainer", {"_trainer"}),
        ("super()._apply(print)", {"_apply"}),
        ("self._device = 1; print(self._device)", {"_device"}),
        ("self._mine = 1; print(self._mine)", set()),
        ("self._ddp_params_and_buffers_to_ignore = []", {"_ddp_params_and_buffers_to_ignore"}),
    ],
)
def test_inherited_names_are_found(body: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"from pytorch_lightning import LightningModule\nclass A(LightningModule):\n    def f(self): {body}\n"
    name = f"made_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert set(inherited(name, ast.parse(text))) == names
