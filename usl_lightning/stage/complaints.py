"""Turns a parser's page of complaint into the one line that matters."""

import difflib
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from usl_lightning.base.configs import config_parts
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.base.parameters import verbs_of
from usl_lightning.base.problems import wrong_parameters
from usl_lightning.base.typed import as_seed
from usl_lightning.data.images.catalog import canonical_name
from usl_lightning.data.images.rendering import colour_of
from usl_lightning.stage.identity import flatten
from usl_lightning.stage.words import COMMANDS, StageCommand

GROUPS = (
    "model", "data", "trainer", "checkpoint", "processes", "seed_everything", "compile", "activation_checkpointing",
)  # fmt: skip
"""What a configuration may hold, or is a group of that."""

_GIVEN = re.compile(r"NestedArg\(key='([^']*)'")
_KEY = re.compile(r"Parser key \"([^\"]+)\":")
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_NO_CLASS = re.compile(
    r"Import path (?P<path>.+) does not correspond to a subclass of (?P<base>\w+)"
    r"|Expected a dot import path string: *(?P<empty>)\n"
    r"|Subclasses are disabled for (?P<only>\w+), thus '(?P<other>[^']*)'"
    r"|following arguments are required: (?P<required>.+)"
)
_TROUBLE = re.compile(
    r"Option '(?P<unknown>[^']+)' is not accepted"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<option>[^']+)'"
    r"|Expected an? (?P<expected>.+?)\. Got value: (?P<got>.*)"
    r"|Expected a dot import path string: (?P<path>.*)"
    # A value that fits none of several types; not the model as a whole, whose own trouble is inside.
    r"|Subtypes: \[(?P<union>(?!<class 'pytorch_lightning\.core).*)\]\n(?:.*\n)*?\s*Given value: (?P<value>.*)"
    r"|(?P<module>(?:No module named|module) '.*)"
    r"|[Uu]nrecognized arguments: --(?P<argument>[\w.+-]+)"
    r"|Key '(?P<key>[^']+)' is not expected"
)

_REFUSED = re.compile(r"^  - (?!Not a valid subclass|Expected a)(.*(?:\n {6}.*)?)", re.MULTILINE)
"""Of a page about a union: what the class that is meant says."""


def explain(message: str, stage: StageCommand, known: Iterable[str]) -> str:
    """One line for a parser's message: where the key was given, what is wrong with it, the nearest name.

    Args:
        message: as the parser raised it.
        stage: what was typed; tells which file or option the key came from.
        known: dotted keys that the parser knows.
    """
    path = [name for name in _KEY.findall(message) if name]
    given = _GIVEN.search(message)
    wrong = _NO_CLASS.search(message)
    if wrong is not None:
        return _about_a_class(wrong.groupdict(), ".".join(path), stage)
    for trouble in _TROUBLE.finditer(message):
        found = trouble.groupdict()
        if found["expected"] == "<class 'NoneType'>":
            continue
        prefix = ".".join([*path[:1], given[1]] if given else path)
        if found["unknown"] or found["key"]:
            leaf = found["unknown"] or found["key"]
            names = _parameters(_CLASS.findall(message)[: len(path)])
            key = prefix if prefix.endswith(leaf) else f"{prefix}.{leaf}"
            return f"{_where(stage, key)}: unknown key '{leaf}'{did_you_mean(leaf, names)}; {_expected(names)}"
        if found["option"]:
            leaf, group = found["option"], found["group"]
            names = _parameters(_CLASS.findall(message), group) or [
                key.removeprefix(f"{group}.") for key in known if key.startswith(f"{group}.")
            ]
            where = _where(stage, ".".join([*path, group, leaf]))
            return f"{where}: unknown key '{leaf}'{did_you_mean(leaf, names)}; {_expected(names)}"
        if found["argument"]:
            where = _where(stage, found["argument"].split("=")[0])
            key = where.removeprefix("--")
            names = [name for name in (*known, *stage.flat()) if name != key]
            return f"{where}: unknown key{did_you_mean(key, names)}; see --help"
        if found["module"]:
            return f"{_where_class(stage, prefix)}: {found['module'].strip()}{_nearest_in_module(found['module'])}"
        if found["path"]:
            meant = _nearest_method(found["path"])
            return (
                f"{_where(stage, prefix)}: expected the name of a class, package.module.Class, "
                f"found {found['path']}{meant}"
            )
        if found["union"]:
            types = re.split(r", (?=<|typing)", found["union"])
            expected = " or ".join(_plain(name) for name in types if name != "<class 'NoneType'>")
            return f"{_where(stage, prefix)}: expected {expected}, found {found['value'].strip()}"
        if found["expected"]:
            return f"{_where(stage, prefix)}: expected {_plain(found['expected'])}, found {found['got'].strip()}"
    return " ".join(message.split())


def _about_a_class(found: Mapping[str, str | None], key: str, stage: StageCommand) -> str:
    """What is wrong with the class that a parameter names, or with what is given to it; see `_NO_CLASS`."""
    if found["required"]:
        missing = [f"--{key}.{name.strip()}" for name in found["required"].split(",")]
        return f"{stage.configs[-1]}: {', '.join(missing)} must be given"
    if found["only"]:
        named = (name for name, value in stage.flat().items() if str(value) == found["other"])
        key = next((name.removesuffix(".class_path") for name in named if name.endswith(".class_path")), key)
        expected = f"parameters of {found['only']}, as in --{key}.NAME"
        return f"{_where_class(stage, key)}: expected {expected}, found {found['other']}"
    base = f"a {found['base']}" if found["base"] else "a class, package.module.Class"
    return f"{_where_class(stage, key)}: expected the name of {base}, found {found['path'] or 'nothing'}"


def _where_class(stage: StageCommand, key: str) -> str:
    """The option or the file in which the class of a parameter was named."""
    return f"--{key}" if key in stage.overrides else _where(stage, f"{key}.class_path")


def _where(stage: StageCommand, key: str) -> str:
    """The option or the file that a dotted key was given in."""
    for option, text in reversed(stage.overrides.items()):
        name = option.replace(".init_args", "").rstrip("+")
        has_parts = text.lstrip().startswith(("{", "["))
        if key == f"{name}.class_path":
            return f"--{option}"
        if key == name or (has_parts and key.startswith((f"{name}.", f"{name}["))):
            return f"--{option}{key.removeprefix(name)}"
    parts = [(path, list(flatten(tree))) for config in stage.configs for path, tree in config_parts(config)]
    for path, names in reversed(parts):
        if key.partition("[")[0] in names:
            return f"{path}: {key}"
    leaf = key.rpartition(".")[2]
    for option in stage.overrides:
        if option.rpartition(".")[2] == leaf:
            return f"--{option}"
    for path, names in reversed(parts):
        for name in names:
            if leaf in name.split("."):
                return f"{path}: {name}"
    return key


def _parameters(classes: list[str], group: str = "") -> list[str]:
    """Parameter names of the innermost class that can be imported, its bases' included.

    Args:
        classes: dotted names, the innermost last.
        group: a parameter of the class that is a group of parameters itself, whose names are wanted instead.
    """
    for name in reversed(classes):
        module, _, attribute = name.rpartition(".")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError):
            continue
        return _names(typing.get_type_hints(vars(found)["__init__"])[group] if group else found)
    return []


def _names(found: Any) -> list[str]:
    """Parameters to type of a class; a base's are accepted only if `**kwargs` passes them on."""
    names: set[str] = set()
    for base in inspect.getmro(found):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            passed_on = [each for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD]
            names |= {each.name for each in parameters if each not in passed_on}
            if not passed_on:
                break
    return sorted(names - {"self", "image", "seed"})  # the last two come from elsewhere in the configuration


def _nearest_in_module(complaint: str) -> str:
    found = re.match("module '(.+)' has no attribute '(.+)'", complaint)
    if found:
        return did_you_mean(found[2], vars(importlib.import_module(found[1])))
    missing = re.match(r"No module named '(.+)\.(.+)'", complaint)
    if not missing:
        return ""
    try:
        siblings = pkgutil.iter_modules(importlib.import_module(missing[1]).__path__)
    except (ImportError, AttributeError):
        return ""
    return did_you_mean(missing[2], [sibling.name for sibling in siblings])


def _nearest_method(name: str) -> str:
    """A class of the method that a bare name may mean; its file is called as it is."""
    methods: dict[str, str] = {}
    for package in ("pretrain", "selection", "semisup"):
        folder = importlib.import_module(f"usl_lightning.{package}").__path__
        methods |= {each.name: f"usl_lightning.{package}.{each.name}" for each in pkgutil.iter_modules(folder)}
    near = difflib.get_close_matches(name.strip().lower(), methods, n=1)
    return f" (did you mean the class in {methods[near[0]]}?)" if near else ""


def _expected(names: list[str]) -> str:
    return f"expected one of {', '.join(names)}" if 0 < len(names) <= 20 else "see --help"


def _plain(expected: str) -> str:
    words = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", re.sub(r"<class '([\w.]+)'>", r"\1", expected))
    choices = re.fullmatch(r"Literal\[(.+)\]", words)
    return f"one of {choices[1]}" if choices else words


@contextmanager
def naming_the_cause(stage: StageCommand) -> Iterator[None]:
    """Make one line of a class that cannot be built: a package that it needs is not installed, or it refuses a value.

    Raises:
        UslError: says which, or why.
    """
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ImportError | UslError):
            cause = cause.__cause__
        reason = _REFUSED.search(str(error))
        if cause is None and reason is not None:
            raise UslError(f"{stage.configs[-1]}: {' '.join(reason[1].split())}") from error
        if not isinstance(cause, ImportError):
            raise
        raise UslError(f"{stage.configs[-1]}: {str(cause).splitlines()[0]}") from error


def check_parameters(stage: StageCommand) -> None:
    """Refuse keys and values that the classes' sources show to be wrong; nothing heavy is imported.

    Raises:
        UslError: names the key, where it was given, and what was expected.
    """
    for key, problem, names in wrong_parameters(stage.tree()):
        leaf = key.rpartition(".")[2]
        near = f"{did_you_mean(leaf, names)}; {_expected(names)}" if names else ""
        if key == "model.class_path" and "." not in (given := str(stage.flat().get(key))):
            near = _nearest_method(given)
        raise UslError(f"{_where(stage, key)}: {printable(problem, 300)}{near}")
    flat = stage.flat()
    for key in flat:
        if key.partition(".")[0] not in GROUPS:
            raise UslError(f"{_where(stage, key)}: unknown key '{key}'{did_you_mean(key, GROUPS)}; see --help")
    as_seed(str(stage.tree()["seed_everything"]), "seed_everything")
    verbs = verbs_of(str(flat.get("model.class_path")))
    if verbs and stage.command in COMMANDS and stage.command not in verbs:
        name = str(flat["model.class_path"]).rpartition(".")[2]
        raise UslError(f"usl {stage.command}: {stage.configs[-1]} is for usl {', '.join(verbs)}: its model is {name}")
    if flat.get("data.dataset") is not None:
        canonical_name(str(flat["data.dataset"]))
    if flat.get("data.background") is not None:
        colour_of(str(flat["data.background"]))


def check_keys(stage: StageCommand, resolved: Mapping[str, Any]) -> None:
    """Refuse keys that the parser took for something else, as it does with abbreviations of nested names.

    Args:
        stage: what was typed.
        resolved: the configuration with every default, as dotted keys.

    Raises:
        UslError: names the key, its file and the nearest valid one.
    """
    for name in stage.flat():
        if not any(full == name or full.startswith(f"{name}.") or name.startswith(f"{full}.") for full in resolved):
            raise UslError(f"{_where(stage, name)}: unknown key '{name}'{did_you_mean(name, resolved)}")
