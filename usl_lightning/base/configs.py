"""The configurations that ship with the package, and how a name on the command line finds a file."""

import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from usl_lightning.base.classes import moved_text
from usl_lightning.base.documents import NULLS, Listed, Mapped, Plain, parse_document, read_document, settled
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.base.kinds import Kind
from usl_lightning.base.problems import kind_at

Tree = dict[str, Any]

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")

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
        elif not isinstance(old, dict) or _another_class(old, new):
            tree[key] = _copied(new)
        elif _is_of_a_class(old) or _is_of_a_class(new):
            shaped = dict(_shaped(old))
            old.clear()
            old.update(shaped)
            _merge(old, _shaped(new))
        else:
            _merge(old, new)


def _another_class(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether parameters of `old` mean nothing to `new`; a part may give some before any part names the class."""
    return "class_path" in old and new.get("class_path", old["class_path"]) != old["class_path"]


def _is_of_a_class(node: Mapping[str, Any]) -> bool:
    return "class_path" in node or "init_args" in node


def _shaped(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node of a class with its parameters below `init_args`, where they may have been left out."""
    given, own = node.get("init_args") or {}, {key: item for key, item in node.items() if key in _OF_A_CLASS}
    loose = {key: item for key, item in node.items() if key not in _OF_A_CLASS}
    return {**own, "init_args": {**given, **loose}} if loose and isinstance(given, Mapping) else node


def _copied(value: Any) -> Any:
    """Mappings that may be merged into, apart from the document's own."""
    if not isinstance(value, dict):
        return value
    copy = Mapped({key: _copied(item) for key, item in (_shaped(value) if "class_path" in value else value).items()})
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
    kind = kind_at(tree, path)
    if (kind.text and not kind.texts) or not text.lstrip().startswith(("[", "{", '"', "'")):
        return Plain(text)
    return parse_document(text, f"--{key}")


def _typed(value: Any, tree: Tree, path: list[str]) -> Any:
    """A value, and all below it, as the types of the parameters say."""
    kind = kind_at(tree, path)
    listed = kind.texts and isinstance(value, list)
    if kind.text and isinstance(value, Mapped | Listed) and value.text and not listed:
        value = value.text
    if isinstance(value, Mapping):
        if "class_path" in value:
            arguments = value.get("init_args") or {}
            if not isinstance(arguments, Mapping):
                raise UslError(f"{'.'.join(path)}.init_args: expected keys and values, found {short(str(arguments))}")
            given = {key: _typed(item, tree, [*path, key]) for key, item in arguments.items()}
            others = {key: settled(item) for key, item in value.items() if key not in ("class_path", "init_args")}
            return {"class_path": str(value["class_path"]), **({"init_args": given} if given else {}), **others}
        return {key: _typed(item, tree, [*path, key]) for key, item in value.items()}
    if isinstance(value, list):
        return [str(item) if listed and isinstance(item, Plain) else _typed_item(item) for item in value]
    return _scalar(value, kind)


def _typed_item(item: Any) -> Any:
    """An element of a list; one that names a class has parameters of its own."""
    if isinstance(item, Mapping) and "class_path" in item:
        return _typed(item, {"item": item}, ["item"])
    return settled(item)


def _scalar(value: Any, kind: Kind) -> Any:
    if kind.text and isinstance(value, str):
        if kind.optional and (not value or (isinstance(value, Plain) and value in NULLS)):
            return None
        return os.path.expanduser(str(value))
    meant = settled(value)
    if kind.number == "float" and isinstance(meant, int) and not isinstance(meant, bool) and abs(meant) < 10**300:
        return float(meant)
    if kind.number == "int" and isinstance(meant, float) and meant.is_integer():
        return int(meant)
    return meant


# The first line of a shipped configuration: chain, stage or table, data set, what it does.
HEADLINE = re.compile(r"(Chain|Stage [123]|Table) on ([^:]+): (.+)")


def shipped_folder() -> Path:
    """Where the shipped configurations lie: inside the wheel, or beside the package in a source checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def shipped() -> dict[str, str]:
    """File name -> its first comment line."""
    return {path.name: _headline(path) for path in sorted(shipped_folder().glob("*.yaml"))}


def names_of_all() -> list[str]:
    """The names that `find_config` finds anywhere: of files, and of pairs without a file of their own."""
    return sorted({*shipped(), *pairs()})


def listing() -> str:
    """The shipped configurations by data set, one a line: file name, chain or stage, what it does.

    Then, for each data set, the names that are found by their parts alone.
    """
    lines = shipped()
    width = max(map(len, lines), default=0)
    groups: dict[str, list[tuple[str, str, str]]] = {}
    title: dict[str, str] = {}  # of a data set, by its name
    for name, headline in lines.items():
        match = HEADLINE.fullmatch(headline)
        kind, dataset, what = match.groups() if match else ("", "others", headline)
        groups.setdefault(dataset, []).append((kind, name, what))
        title[_dataset(name)] = dataset
    more: dict[str, list[str]] = {}
    for name in sorted(set(pairs()) - set(lines)):
        more.setdefault(title.get(_dataset(name), "others"), []).append(name.removesuffix(".yaml"))
    return "\n\n".join(
        "\n".join(
            [
                dataset,
                *(f"  {name:{width}}  {kind:7}  {what}" for kind, name, what in sorted(group)),
                *_wrapped(more.get(dataset, [])),
            ]
        )
        for dataset, group in groups.items()
    )


def _dataset(name: str) -> str:
    """The data set's part of a name."""
    pair = pairs().get(name)
    return pair[1].rpartition("_")[0] if pair else name.partition("_")[0]


def _wrapped(names: list[str]) -> list[str]:
    text = f"without a file of their own: {', '.join(names)}"
    return textwrap.wrap(text, 118, initial_indent="  ", subsequent_indent="    ") if names else []


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """The file meant by `name`: a path as it is; a bare name in the current folder, then among the shipped.

    A data set and a method that have no file of their own (`cifar10_byol.yaml`) are found by their parts: the path is
    then one of the shipped folder that does not exist, and `config_parts` knows what it means.

    Args:
        name: with or without `.yaml`.
        beside: a further folder to look in first (a chain's own).

    Raises:
        UslError: says where it looked and names the nearest shipped configuration.
    """
    name = os.path.expanduser(name)
    names = [str(name)] if str(name).endswith((".yaml", ".yml")) else [str(name), f"{name}.yaml"]
    folders = [folder for folder in (beside, Path()) if folder is not None]
    bare = Path(name).name
    if Path(name).parent == Path():
        folders.append(shipped_folder())
    for folder in folders:
        for candidate in names:
            if os.path.isfile(folder / candidate):
                return folder / candidate
    if Path(name).parent in (Path(), shipped_folder()) and f"{bare.removesuffix('.yaml')}.yaml" in pairs():
        return shipped_folder() / f"{bare.removesuffix('.yaml')}.yaml"
    folder = Path(name).parent
    here = sorted(path.name for path in folder.glob("*.y*ml")) if os.path.isdir(folder) else []
    known = [each for each in names_of_all() if folder == Path() or each == bare]
    near = did_you_mean(bare, here) or did_you_mean(bare, known)
    raise UslError(
        f"{short(str(name))}: no such configuration here or among the shipped ones{near}; `usl configs` lists them"
    )


def find_labels(name: str) -> str:
    """The label index meant by `name`: as it is, unless that is a bare name of no file here and of a shipped one."""
    there = shipped_folder() / "labels" / name
    bare = os.path.basename(name) == name and not os.path.lexists(name)
    return str(there) if bare and there.suffix == ".json" and there.is_file() else name


# Parts ---------------------------------------------------------------------------------------------------

STAGES = {"pretrain": 1, "selection": 2, "semisup": 3}
"""Room of a method's class -> its stage."""


@cache
def pairs() -> dict[str, tuple[str, str]]:
    """Name of each data set and method that parts are there for, as a file -> its parts, method first."""
    names = {path.stem for path in (shipped_folder() / "parts").glob("*.yaml")}
    of_data = {name: name.rpartition("_") for name in names if name.rpartition("_")[2] in STAGES}
    methods = {name: room for name in names - set(of_data) if (room := _room(name)) is not None}
    return {
        f"{dataset}_{method}.yaml": (method, name)
        for method, room in methods.items()
        for name, (dataset, _, stage) in of_data.items()
        if stage == room
    }


def _room(part: str) -> str | None:
    """Which of `STAGES` a method's part is of, by the class that it names."""
    text = (shipped_folder() / "parts" / f"{part}.yaml").read_text(encoding="utf-8")
    found = re.search(r"class_path: usl_lightning\.(\w+)\.", text)
    return found[1] if found else None


def config_parts(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The documents that a configuration consists of, each with its file; later ones win.

    A file may name `parts:`, which come before it: names in the folder `parts` of the shipped configurations, or files
    beside it. A part may do so too, for what methods share; the parts that it names may not.

    Raises:
        UslError: a part is not there, parts lie deeper than that, or a document cannot be read.
    """
    if not os.path.exists(path) and path.parent == shipped_folder() and path.name in pairs():
        return _with_parts(path, {"parts": list(pairs()[path.name])})[:-1]
    return _with_parts(path, load_part(path))


def _with_parts(path: Path, own: Tree, depth: int = 0) -> list[tuple[Path, Tree]]:
    names = own.pop("parts", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UslError(f"{path}: parts: expected a list of names")
    if names and depth == 2:
        raise UslError(f"{path}: a part of a part with parts of its own; name them where it is named")
    below = [_with_parts(*_part(str(name), path), depth + 1) for name in names]
    return [*(part for parts in below for part in parts), (path, own)]


def _part(name: str, whole: Path) -> tuple[Path, Tree]:
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for folder in (whole.parent, whole.parent / "parts", shipped_folder() / "parts"):
        if os.path.isfile(folder / file) and (folder / file) != whole:
            return folder / file, load_part(folder / file)
    known = [path.stem for path in (shipped_folder() / "parts").glob("*.yaml")]
    raise UslError(f"{whole}: parts: no such part: {short(name)}{did_you_mean(name, known)}")


def short(name: str) -> str:
    """A name cut to 100 characters on one line, for messages."""
    return printable(name, 100)


def load_part(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, its plain scalars as typed; see `documents`.

    Raises:
        UslError: unreadable, or something else than a mapping; names the line.
    """
    value = read_document(path)
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(settled(value)).__name__
        raise UslError(f"{path}: expected a mapping of keys to values, found {found}")
    _check_once(value, path, set(), "")
    return value


def _check_once(tree: Mapping[str, Any], path: Path, seen: set[str], above: str) -> None:
    """Refuse a parameter that is given twice: as `model.k` and in `model: {k: …}`, in `init_args` and beside it."""
    for key, value in tree.items():
        name = ".".join(word for word in f"{above}.{key}".split(".") if word not in ("", "init_args"))
        if isinstance(value, Mapping):
            _check_once(value, path, seen, name)
        elif name in seen:
            raise UslError(f"{path}: '{name}' is there twice, written in two ways; keep one")
        else:
            seen.add(name)
        for item in value if isinstance(value, list) else ():
            if isinstance(item, Mapping):
                _check_once(item, path, set(), "")


def load_yaml(path: Path) -> dict[str, Any]:
    """`load_part` with every scalar as what it means by itself."""
    return dict(settled(load_part(path)))
