"""One configuration from its parts and overrides: the one rule by which the front, identity and LightningCLI see it.

Later parts win. A mapping is merged into the one before it, unless it names another `class_path`: then it replaces
that, arguments and all. An override `a.b.c` sets one value; `init_args` need not be typed. A parameter whose type is
text takes a text as typed; `null` unsets an optional one; `~/` is the home folder.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from usl_lightning.base.documents import Listed, Mapped, Plain, parse_document, settled
from usl_lightning.base.errors import UslError
from usl_lightning.base.moved import moved_text
from usl_lightning.base.parameters import Kind, kind_at

Tree = dict[str, Any]

_CLASS = re.compile(r"(?!(?:true|false|null)$)[A-Za-z_][\w.]*", re.IGNORECASE)


def compose(parts: Iterable[Mapping[str, Any]], overrides: Mapping[str, str]) -> Tree:
    """The whole configuration, nested, with `class_path` and `init_args`, every value of its type.

    Args:
        parts: documents as `read_document` gives them.
        overrides: dotted key -> text as typed.

    Raises:
        UslError: an override that is no YAML, or that reaches into a value that has no parts.
    """
    tree: Tree = {}
    for part in parts:
        _merge(tree, part)
    for key, text in overrides.items():
        _override(tree, key, moved_text(text))
    return {key: _typed(value, tree, [key]) for key, value in tree.items()}


def _merge(tree: Tree, part: Mapping[str, Any]) -> None:
    for key, new in part.items():
        old = tree.get(key)
        if not isinstance(new, Mapping):
            tree[key] = new
        elif not isinstance(old, dict) or new.get("class_path", old.get("class_path")) != old.get("class_path"):
            tree[key] = _copied(new)
        else:
            _merge(old, new)


def _copied(value: Any) -> Any:
    """Mappings that may be merged into, apart from the document's own."""
    if not isinstance(value, dict):
        return value
    copy = Mapped({key: _copied(item) for key, item in value.items()})
    copy.text = value.text if isinstance(value, Mapped) else ""
    return copy


def _override(tree: Tree, key: str, text: str) -> None:
    *above, name = [word for word in key.split(".") if word != "init_args"]
    node: Any = tree
    for number, word in enumerate(above):
        node = _arguments(node).setdefault(word, {})
        if node is None or (isinstance(node, Plain) and not node):  # given as null before
            node = _arguments(_node(tree, above[:number]))[word] = {}
        elif isinstance(node, str) and _CLASS.fullmatch(node):  # `--trainer.logger CSVLogger` came before
            node = _arguments(_node(tree, above[:number]))[word] = {"class_path": str(node), "init_args": {}}
        if not isinstance(node, dict):
            raise UslError(f"--{key}: {'.'.join(above[: number + 1])} is {settled(node)!r}, which has no '{name}'")
    if name == "class_path":
        if node.get("class_path") != text:
            node.clear()
        node["class_path"] = text
        return
    arguments = _arguments(node)
    appends, name = name.endswith("+"), name.removesuffix("+")
    value = _value_of(tree, [*above, name], key, text)
    if appends:
        arguments[name] = [*(arguments.get(name) or []), *(value if isinstance(value, list) else [value])]
    elif isinstance(arguments.get(name), dict) and isinstance(value, Mapping):
        _merge(arguments, {name: value})
    elif isinstance(arguments.get(name), dict) and "class_path" in arguments[name] and isinstance(value, str):
        _merge(arguments, {name: {"class_path": str(value)}})  # `--model package.Class`
    else:
        arguments[name] = value


def _node(tree: Tree, path: list[str]) -> Any:
    node: Any = tree
    for word in path:
        node = _arguments(node)[word]
    return node


def _arguments(node: Tree) -> Tree:
    """Where the parameters of a node are."""
    if "class_path" in node:
        if not isinstance(node.get("init_args"), dict):
            node["init_args"] = {}
        return node["init_args"]  # type: ignore[no-any-return]
    return node


def _value_of(tree: Tree, path: list[str], key: str, text: str) -> Any:
    """A text on the command line: itself where texts are taken, else what it means as YAML."""
    if kind_at(tree, path).text or not text.lstrip().startswith(("[", "{", '"', "'")):
        return Plain(text)
    return parse_document(text, f"--{key}")


def _typed(value: Any, tree: Tree, path: list[str]) -> Any:
    """A value, and all below it, as the types of the parameters say."""
    kind = kind_at(tree, path)
    if kind.text and isinstance(value, Mapped | Listed) and value.text:
        value = value.text
    if isinstance(value, Mapping):
        if "class_path" in value:
            arguments = value.get("init_args")
            given = {key: _typed(item, tree, [*path, key]) for key, item in (arguments or {}).items()}
            others = {key: settled(item) for key, item in value.items() if key not in ("class_path", "init_args")}
            return {"class_path": str(value["class_path"]), **({"init_args": given} if given else {}), **others}
        return {key: _typed(item, tree, [*path, key]) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed_item(item) for item in value]
    return _scalar(value, kind)


def _typed_item(item: Any) -> Any:
    """An element of a list; one that names a class has parameters of its own."""
    if isinstance(item, Mapping) and "class_path" in item:
        return _typed(item, {"item": item}, ["item"])
    return settled(item)


def _scalar(value: Any, kind: Kind) -> Any:
    if kind.text and isinstance(value, str):
        if isinstance(value, Plain) and kind.optional and value in ("null", ""):
            return None
        return os.path.expanduser(value) if value.startswith("~") else str(value)
    meant = settled(value)
    if kind.number == "float" and isinstance(meant, int) and not isinstance(meant, bool):
        return float(meant)
    if kind.number == "int" and isinstance(meant, float) and meant.is_integer():
        return int(meant)
    return meant
