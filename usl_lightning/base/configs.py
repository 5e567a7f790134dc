"""The configurations that ship with the package, and how a name on the command line finds a file."""

import os
import re
from contextlib import suppress
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


def listing() -> str:
    """The shipped configurations by data set, one a line: file name, chain or stage, what it does."""
    lines = shipped()
    width = max(map(len, lines), default=0)
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for name, headline in lines.items():
        match = HEADLINE.fullmatch(headline)
        kind, dataset, what = match.groups() if match else ("", "others", headline)
        groups.setdefault(dataset, []).append((kind, name, what))
    return "\n\n".join(
        "\n".join([dataset, *(f"  {name:{width}}  {kind:7}  {what}" for kind, name, what in sorted(group))])
        for dataset, group in groups.items()
    )


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """The file meant by `name`: a path as it is; a bare name in the current folder, then among the shipped.

    Args:
        name: with or without `.yaml`.
        beside: a further folder to look in first (a chain's own).

    Raises:
        UslError: says where it looked and names the nearest shipped configuration.
    """
    name = os.path.expanduser(name)
    names = [str(name)] if str(name).endswith((".yaml", ".yml")) else [str(name), f"{name}.yaml"]
    folders = [folder for folder in (beside, Path()) if folder is not None]
    if Path(name).parent == Path():
        folders.append(shipped_folder())
    for folder in folders:
        for candidate in names:
            with suppress(OSError, ValueError):  # names that no file can have
                if (folder / candidate).is_file():
                    return folder / candidate
    bare = Path(name).name
    raise UslError(
        f"{short(name)}: no such configuration here or among the shipped ones{did_you_mean(bare, shipped())}; "
        "`usl configs` lists them"
    )


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
