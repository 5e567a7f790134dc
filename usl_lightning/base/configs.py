"""The configurations that ship with the package, and how a name on the command line finds a file."""

import os
import re
import textwrap
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from usl_lightning.base.documents import read_document, settled
from usl_lightning.base.errors import UslError, did_you_mean

# The first line of a shipped configuration: chain or stage, data set, what it does.
HEADLINE = re.compile(r"(Chain|Stage [123]) on ([^:]+): (.+)")


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
            with suppress(OSError, ValueError):  # names that no file can have
                if (folder / candidate).is_file():
                    return folder / candidate
    if Path(name).parent in (Path(), shipped_folder()) and f"{bare.removesuffix('.yaml')}.yaml" in pairs():
        return shipped_folder() / f"{bare.removesuffix('.yaml')}.yaml"
    near = did_you_mean(bare, names_of_all())
    raise UslError(
        f"{short(str(name))}: no such configuration here or among the shipped ones{near}; `usl configs` lists them"
    )


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
    beside it.

    Raises:
        UslError: a part is not there, has parts itself, or a document cannot be read.
    """
    if not path.exists() and path.parent == shipped_folder() and path.name in pairs():
        return [_part(name, path) for name in pairs()[path.name]]
    own = load_part(path)
    names = own.pop("parts", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UslError(f"{path}: parts: expected a list of names")
    return [*(_part(str(name), path) for name in names), (path, own)]


def _part(name: str, whole: Path) -> tuple[Path, dict[str, Any]]:
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for folder in (whole.parent, whole.parent / "parts", shipped_folder() / "parts"):
        if (folder / file).is_file() and (folder / file) != whole:
            part = load_part(folder / file)
            if "parts" in part:
                raise UslError(f"{folder / file}: a part with parts of its own; name them all in {whole}")
            return folder / file, part
    known = [path.stem for path in (shipped_folder() / "parts").glob("*.yaml")]
    raise UslError(f"{whole}: parts: no such part: {short(name)}{did_you_mean(name, known)}")


def short(name: str) -> str:
    """A name cut to 100 characters, for messages."""
    return name if len(name) <= 100 else f"{name[:99]}…"


def load_part(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping, its plain scalars as typed; see `documents`.

    Raises:
        UslError: unreadable, or something else than a mapping; names the line.
    """
    value = read_document(path)
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(settled(value)).__name__
        raise UslError(f"{path}: expected a mapping of keys to values, found {found}")
    return value


def load_yaml(path: Path) -> dict[str, Any]:
    """`load_part` with every scalar as what it means by itself."""
    return dict(settled(load_part(path)))
