"""What a comparison is to compare, read and checked before anything heavy is imported."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from usl_lightning.base.configs import compose, load_part
from usl_lightning.base.documents import parse_document, settled
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.problems import wrong_options
from usl_lightning.base.ranges import SEED, Range, whole
from usl_lightning.stage.identity import names_a_file

KEYS = ("data", "features", "selectors", "budgets", "seeds", "classifiers")


SOURCES = ("init_from", "backbone", "features")


FEATURE_KEYS = (*SOURCES, "weights", "pretrained", "head", "cache")


ENTRY_KEYS = ("class_path", "init_args", "name")


DATA, SELECTOR = "usl_lightning.data.modules.ImageData", "usl_lightning.selection.selector.Selector"
"""Whose parameters stand under `data` and `features`."""


CLASSIFIERS = {name: f"usl_lightning.semisup.{name}.{name.capitalize()}" for name in ("probe", "propagate", "blend")}
"""Those that learn from few labels in seconds: name -> class path."""


USAGE = (
    "usl compare CONFIG.yaml [--features.init_from CKPT] [--data.KEY VALUE] [--budgets LIST] [--seeds LIST] "
    "[--classifiers LIST] [--out DIR]"
)


@dataclass(frozen=True)
class Entry:
    """One selector of a comparison.

    Attributes:
        name: in the tables; unique.
        class_path: of the selector, package.module.Class.
        options: its parameters, but for the budget and, as a rule, the source of features.
    """

    name: str
    class_path: str
    options: dict[str, Any]

    @property
    def own_features(self) -> bool:
        """It is given a source of features of its own, as USL-T's selection has to be."""
        return any(self.options.get(source) is not None for source in SOURCES)


@dataclass(frozen=True)
class Comparison:
    """What a configuration asks for.

    Attributes:
        path: the file.
        out: the folder of the results.
        data: parameters of `ImageData`.
        features: where the features come from: parameters of `Selector`.
        selectors, budgets, seeds: all combinations are run.
        classifiers: names of those that learn from each choice, see `CLASSIFIERS`.
    """

    path: Path
    out: Path
    data: dict[str, Any]
    features: dict[str, Any]
    selectors: tuple[Entry, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    classifiers: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, str], out: Path | None = None) -> "Comparison":
        """Read and check a configuration.

        Args:
            path: the YAML file.
            overrides: `data.KEY`, `features.KEY`, `budgets`, `seeds` or `classifiers` -> text as typed; they win over
                the file.
            out: the folder of the results; default: runs/<name of the file>.

        Raises:
            UslError: names the file or the option, the key, and the nearest name that is known.
        """
        content = load_part(path)
        for key in content:
            if key not in KEYS:
                raise UslError(f"{path}: unknown key '{key}'{did_you_mean(key, KEYS)}; expected {', '.join(KEYS)}")
        lists = {"budgets": settled(content.get("budgets")), "seeds": settled(content.get("seeds", [0]))}
        lists["classifiers"] = settled(content.get("classifiers", []))
        for key, text in overrides.items():
            group, _, name = key.partition(".")
            if group in ("data", "features") and name:
                continue
            if key in lists:
                lists[key] = settled(parse_document(text, f"--{key}"))
            else:
                known = (*lists, "out", *(f"features.{name}" for name in FEATURE_KEYS))
                raise UslError(f"--{key}: unknown option{did_you_mean(key, known)}; use {USAGE}")
        data = _typed(path, "data", DATA, content.get("data", {}), overrides)
        features = _typed(path, "features", SELECTOR, content.get("features", {}), overrides)
        if "dataset" not in data:
            raise UslError(f"{path}: data.dataset: the data set is missing; expected its name")
        _check_features(path, features)
        _check_values(f"{path}: data", DATA, data)
        return cls(
            path,
            out or Path("runs") / path.stem,
            data,
            features,
            _entries(path, content.get("selectors")),
            _numbers(f"{path}: budgets", lists["budgets"], whole(1)),
            _numbers(f"{path}: seeds", lists["seeds"], SEED),
            _classifiers(f"{path}: classifiers", lists["classifiers"]),
        )


def selector_names() -> dict[str, str]:
    """Short name -> class path of every selector: the name of its file. Found by looking; nothing is imported."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "selection").glob("*.py")):
        defined = re.search(r"^class (\w+)\(Selector\):", path.read_text(encoding="utf-8"), re.MULTILINE)
        if defined:
            found[path.stem] = f"usl_lightning.selection.{path.stem}.{defined[1]}"
    return found


def _entries(path: Path, listed: Any) -> tuple[Entry, ...]:
    if not isinstance(listed, list) or not listed:
        raise UslError(f"{path}: selectors: expected a list of names, or of mappings with class_path and init_args")
    entries: list[Entry] = []
    for number, item in enumerate(listed):
        where = f"{path}: selectors[{number}]"
        given = {"class_path": item} if isinstance(item, str) else _mapping(item, where)
        for key in given:
            if key not in ENTRY_KEYS:
                expected = f"expected {', '.join(ENTRY_KEYS)}"
                raise UslError(f"{where}: unknown key '{key}'{did_you_mean(key, ENTRY_KEYS)}; {expected}")
        short = str(given.get("class_path"))
        name = str(given.get("name", short.rpartition(".")[2]))
        if not re.fullmatch(r"[\w .+-]+", name):
            raise UslError(f"{where}: name: {name!r} is no name; expected letters, digits, spaces and . + - _")
        if name in [entry.name for entry in entries]:
            raise UslError(f"{where}: the name '{name}' is taken; give it another with name:")
        class_path = _class_path(short, where)
        entry = Entry(name, class_path, _typed(path, f"selectors[{number}]", class_path, given.get("init_args", {})))
        _check_values(f"{path}: selectors: {name}", entry.class_path, entry.options)
        entries.append(entry)
    return tuple(entries)


def _typed(
    path: Path, group: str, class_path: str, given: Any, overrides: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Parameters of a class as its types say; of the overrides, `GROUP.KEY` are theirs."""
    part = {group: {"class_path": class_path, "init_args": _mapping(given, f"{path}: {group}")}}
    own = {key: text for key, text in overrides.items() if key.startswith(f"{group}.")}
    return dict(compose([part], own)[group].get("init_args", {}))


def _class_path(name: str, where: str) -> str:
    known = selector_names()
    if "." in name:
        return name
    if name not in known:
        raise UslError(
            f"{where}: unknown selector '{name}'{did_you_mean(name, known)}; expected one of {', '.join(known)}, "
            "or package.module.Class"
        )
    return known[name]


def _check_features(path: Path, features: Mapping[str, Any]) -> None:
    for key in features:
        if key not in FEATURE_KEYS:
            expected = f"expected {', '.join(FEATURE_KEYS)}"
            raise UslError(f"{path}: features: unknown key '{key}'{did_you_mean(key, FEATURE_KEYS)}; {expected}")
    given = [source for source in SOURCES if features.get(source) is not None]
    if len(given) != 1:
        raise UslError(
            f"{path}: features: {' and '.join(given) or 'nothing'} given; expected one source of features: init_from "
            "(--features.init_from CKPT), backbone or features"
        )
    file = features[given[0]]
    if names_a_file(f"model.{given[0]}") and not os.path.isfile(str(file)):
        raise UslError(f"features.{given[0]}: no such file: {file}")


def _check_values(where: str, class_path: str, options: Mapping[str, Any]) -> None:
    for key, problem in wrong_options(class_path, options):
        raise UslError(f"{where}: {key}: {problem}")


def _numbers(where: str, value: Any, each: Range) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    for number in values:
        problem = each.problem(number)
        if problem is not None or not isinstance(number, int):
            raise UslError(f"{where}: {problem or f'expected a list of whole numbers, {each}, found {number!r}'}")
    if not values or len(set(values)) < len(values):
        raise UslError(f"{where}: expected at least one number, none of them twice")
    return tuple(values)


def _classifiers(where: str, value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or name not in CLASSIFIERS:
            raise UslError(f"{where}: {name!r}: expected a list of {', '.join(CLASSIFIERS)}")
    if len(set(names)) < len(names):
        raise UslError(f"{where}: expected none of them twice")
    return tuple(names)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UslError(f"{where}: expected keys and values, found {value!r}")
    return {str(key): inner for key, inner in value.items()}
