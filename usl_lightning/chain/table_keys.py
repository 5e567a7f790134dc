"""Stages that several cells of a table mean: one folder for each, whichever run makes it.

A stage of a cell is a link into the folder `stages/` of the table. Its name there says what the stage is: a hash of its
configuration, what is set, its data and files, the seed, and of the stages that it takes from.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from usl_lightning.base.configs import compose, config_parts
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import noted_hash, read_json
from usl_lightning.base.version import __version__
from usl_lightning.chain.file import REFERENCE, Stage
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.identity import (
    data_hash,
    differences,
    digest,
    flatten,
    identity_fields,
    names_a_file,
    revisions,
)
from usl_lightning.stage.words import found_files

POOL = "stages"
"""Folder of a table with the stages of all cells."""


def pool_names(stages: Sequence[Stage], seed: int) -> dict[str, str]:
    """Stage -> the name of its folder in the pool: two stages have the same if they compute the same.

    Args:
        stages: of a chain, in order, with all that they take from.
        seed: of the chain.

    Raises:
        UslError: data or a file that a parameter names is not there.
    """
    names: dict[str, str] = {}
    for stage in stages:
        flat = _flat(stage, names)
        fields = identity_fields(flat)
        for key, value in fields.items():
            if value is not None and names_a_file(key) and not REFERENCE.search(stage.set.get(key, "")):
                fields[key] = _content(key, str(value))
        fields["data.files"] = data_hash(flat)
        told = digest({"command": stage.command, "seed": seed, **fields}).removeprefix("sha256:")[:16]
        names[stage.name] = f"{stage.name}-{told}"
    return names


def _flat(stage: Stage, names: Mapping[str, str]) -> dict[str, Any]:
    """Its configuration, with names in place of the stages that it takes from."""
    told = {key: REFERENCE.sub(lambda match: f"{names[match[1]]}.{match[2]}", text) for key, text in stage.set.items()}
    return flatten(compose(_parts(stage.config), found_files(told)))


@cache
def _parts(config: Path) -> list[Any]:
    return [tree for _, tree in config_parts(config)]


@cache
def _content(key: str, path: str) -> str:
    if not os.path.isfile(path):
        raise UslError(f"{key}: no such file: {path}")
    return noted_hash(path)


def linked(cell: Path, stage: str, name: str) -> StageFolder:
    """A cell's stage, made a link to its folder in the pool, which need not have begun.

    Args:
        cell: folder of the cell.
        stage: its name there.
        name: its name in the pool.

    Raises:
        UslError: something else is there.
    """
    place, pool = cell / stage, cell.parent / POOL / name
    if pool.is_symlink() and not pool.exists():
        pool.unlink()  # of another run's stage, which was deleted
    pool.mkdir(parents=True, exist_ok=True)
    cell.mkdir(exist_ok=True)
    if place.is_symlink() and os.readlink(place) != _target(name):
        place.unlink()  # the table was changed since
    elif place.exists() and not place.is_symlink():
        raise UslError(f"{place}: is no link to a stage of this table; move it, or give the table another --name")
    with suppress(FileExistsError):  # another job of the table made it
        place.symlink_to(_target(name))
    return StageFolder(place)


def is_linked(cell: Path, stage: str, name: str) -> bool:
    """Whether a cell's stage is the link to this folder of the pool."""
    place = cell / stage
    return place.is_symlink() and os.readlink(place) == _target(name) and place.exists()


def _target(name: str) -> str:
    return os.path.join(os.pardir, POOL, name)


def unlinked(folder: StageFolder) -> None:
    """Take back what `linked` has made for a stage that has left nothing."""
    with suppress(OSError):
        if folder.record() is None:
            folder.path.resolve().rmdir()
            folder.path.unlink()


def adopted(folder: StageFolder, identity: Mapping[str, Any], runs: Path) -> Path | None:
    """Take a finished stage of the same identity over from any run of a folder.

    Args:
        folder: of a cell's stage that has not begun, as `linked` gives it.
        identity: what it is to be.
        runs: the folder of all runs.

    Returns:
        The other's folder; None if there is none.
    """
    wanted, own = digest(identity), folder.path.resolve()
    for path in _records(runs):
        with suppress(OSError, UslError):
            other = StageFolder(path.parent.resolve())
            record = read_json(path, "")
            if other.path != own and record["identity_hash"] == wanted and other.complete:
                own.rmdir()
                own.symlink_to(os.path.relpath(other.path, own.parent))
                return path.parent
    return None


def _records(runs: Path) -> Iterator[Path]:
    """`stage.json` of the stages of all runs and tables, each once."""
    seen = set[str]()
    for pattern in ("*/*/stage.json", f"*/{POOL}/*/stage.json"):
        for path in sorted(runs.glob(pattern)):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                yield path


def check_same_version(folder: StageFolder, stage: Stage) -> None:
    """Of a finished stage: it was made by this version of the package and of its classes.

    Raises:
        UslError: it was not; says what differs.
    """
    identity = (folder.record() or {}).get("identity", {})
    before = {key: value for key, value in identity.items() if key == "version" or key.endswith(".revision")}
    flat = _flat(stage, {name: name for name in stage.needs()})
    now = {
        "version": __version__,
        **{key: value for key, value in before.items() if "decoding" in key},
        **revisions(flat),
    }
    if lines := differences(before, now):
        raise UslError(
            f"{folder.path}: was run by another version: {'; '.join(lines)}; give the table another --name to run all "
            "of it again"
        )
