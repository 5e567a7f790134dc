"""What makes two runs of a stage the same, told without importing torch."""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from usl_lightning.base.classes import ROOT, dotted, find_class, moved
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import noted_hash
from usl_lightning.base.version import __version__
from usl_lightning.data.images.catalog import FOLDER_SETS
from usl_lightning.data.images.rendering import VERSION as DECODING
from usl_lightning.data.images.signature import data_signature

_CLASS = re.compile(rf"{ROOT.name}(\.\w+)+\.[A-Z]\w*")


def revisions(flat: Mapping[str, Any]) -> dict[str, int]:
    """`{"model.view.revision": 2}`, for each class of this package in model and data that is past its first revision.

    Args:
        flat: a configuration as dotted keys; lists may hold classes too (`model.view.steps.0.revision`).
    """
    found = {}
    for key, value in flat.items():
        if key.partition(".")[0] in ("model", "data"):
            for place, path in _classes(key, value):
                if (revision := revision_of(path)) > 1:
                    found[f"{place}.revision"] = revision
    return found


@cache
def revision_of(class_path: str) -> int:
    """1, and more for each time the mathematics of a class, or of one that it is made of, were changed.

    Args:
        class_path: `package.module.Class`; one of another package is 1.
    """
    seen: dict[tuple[str, str], int] = {}
    _add(class_path, seen)
    return 1 + sum(revision - 1 for revision in seen.values())


def class_at(fields: Mapping[str, Any], place: str) -> str:
    """The class path at a place of a flat configuration (`model.view`); the place itself if none is there."""
    for key, value in fields.items():
        for where, path in _classes(key, value):
            if where == place:
                return path
    return place


def _classes(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """(place, class path) of all classes of this package in a value; a class without arguments may be a mere text."""
    if isinstance(value, str) and _CLASS.fullmatch(value):
        yield place.removesuffix(".class_path"), value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _classes(place if name == "init_args" else f"{place}.{name}", item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _classes(f"{place}.{number}", item)


def _add(class_path: str, seen: dict[tuple[str, str], int]) -> None:
    """Note the revision of a class and of all that it is made of."""
    found = find_class(class_path)
    if found is None or (found.module, found.node.name) in seen:
        return
    seen[found.module, found.node.name] = _own(found.node)
    called = [node.func for node in ast.walk(found.node) if isinstance(node, ast.Call)]
    for part in (*found.node.bases, *called):
        if isinstance(part, ast.Name) and part.id[0].isupper() and (path := dotted(part, found.module)):
            _add(path, seen)


def _own(found: ast.ClassDef) -> int:
    """What the class itself says; 1 if it says nothing."""
    for line in found.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id == "revision":
            return int(ast.literal_eval(line.value))  # type: ignore[attr-defined]
    return 1


TRAINER_FIELDS = (
    "max_steps",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
"""The only Trainer parameters that change what is computed; all others may differ on a resume."""

FREE = ("dir", "workers", "residence", "cache", "download", "eval_batch_size")
"""Parameters of a model or its data that change where and how fast it runs, not what comes out."""

FILES = ("labels", "class_list", "neighbors", "features", "init_from")
"""Parameters that name a file, as do all that end in `_file` and `_from`: its content counts, not its path."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; `init_args` is left out, so that keys read as they are typed."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name))
        else:
            flat[name] = value
    return flat


def identity_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a flat configuration that two runs must share to be the same run."""
    kept = {}
    for key, value in flat.items():
        group, _, name = key.partition(".")
        if (group in ("model", "data", "seed_everything") and name not in FREE) or (
            group == "trainer" and name in TRAINER_FIELDS
        ):
            kept[key] = value
    return kept


def names_a_file(key: str) -> bool:
    """Whether the value of this parameter (`data.labels`) is the path of a file."""
    group, _, name = key.partition(".")
    return group in ("model", "data") and (name in FILES or name.endswith(("_file", "_from")))


@dataclass(frozen=True)
class StageIdentity:
    """What makes a stage's result what it is: noted once, when it starts, and handed to all that records or compares.

    Attributes:
        flat: the configuration as typed: file and overrides, as dotted keys.
        fields: `stage_identity` of it, which `stage.json` records.
    """

    flat: Mapping[str, Any]
    fields: dict[str, Any]

    @classmethod
    def noted(cls, command: str, flat: Mapping[str, Any]) -> "StageIdentity":
        """Look at the files and the data that a configuration names.

        Raises:
            UslError: a file that a parameter names does not exist.
        """
        return cls(flat, stage_identity(command, flat))

    def resolved(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the same configuration with every default; no file that was typed is looked at again.

        Raises:
            UslError: a file that a default names does not exist.
        """
        return _content_fields(flat, self)


def stage_identity(command: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines a stage's result: its parameters, the content of its files, its data, its classes' revisions.

    Args:
        command: `fit` or `select`.
        flat: the configuration file and the overrides, as dotted keys.

    Raises:
        UslError: a file that a parameter names does not exist.
    """
    return {"command": command, "version": __version__, **_content_fields(flat, StageIdentity({}, {}))}


def _content_fields(flat: Mapping[str, Any], known: StageIdentity) -> dict[str, Any]:
    """`identity_fields` with the content of the files and of the data set in place of their paths, and `revisions`."""
    fields = identity_fields(flat)
    for key, value in fields.items():
        if value is not None and names_a_file(key):
            fields[key] = known.fields[key] if known.flat.get(key) == value else _content(key, Path(str(value)))
    data = _data(flat)
    if data is not None:
        fields["data.files"] = known.fields["data.files"] if data == _data(known.flat) else data_signature(**data)
        if data["name"] in FOLDER_SETS and DECODING > 1:
            fields[f"{_DECODING}.revision"] = DECODING
    return fields | revisions(flat)


def _content(key: str, path: Path) -> str:
    if not os.path.isfile(path):
        raise UslError(f"{key}: no such file: {path}")
    return noted_hash(path)


def _data(flat: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of `data_signature`; None without a data set."""
    if "data.dataset" not in flat:
        return None
    directory, split = flat.get("data.dir"), flat.get("data.split", "train")
    others = {name: flat.get(f"data.{name}") for name in ("image_size", "labels_file", "class_list")}
    download = flat.get("data.download", False)
    place = {"name": str(flat["data.dataset"]), "dir": directory and str(directory)}
    return {**place, "split": split, "download": download, **others}


def data_hash(flat: Mapping[str, Any]) -> str | None:
    """`data_signature` of the data set that a flat configuration names, looked at once a process; None without one.

    Raises:
        UslError: it is not there.
    """
    data = _data(flat)
    return None if data is None else _looked_at(tuple(data.items()))


@cache
def _looked_at(data: tuple[tuple[str, Any], ...]) -> str:
    return data_signature(**dict(data))


def digest(fields: Mapping[str, Any]) -> str:
    """A hash of identity fields, independent of their order."""
    text = json.dumps(fields, sort_keys=True, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`"model.threshold was 0.95, now 0.9"` for each field that differs.

    Args:
        old: fields that were recorded, perhaps by an earlier version of this package.
        new: the present ones.
    """
    old, lines = moved(old), []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "not set"), new.get(key, "not set")
        place, _, name = key.rpartition(".")
        was, now = old.get(key, 1), new.get(key, 1)
        if before != after and name == "revision" and isinstance(was, int) and isinstance(now, int):
            if not _same_at(place, old, new):
                continue  # another class, or data of another kind, which a line of its own tells
            lines.append(
                f"{class_at({**old, **new}, place)} was revision {was}, now {now} (what it computes has changed; the "
                f"{'older' if was < now else 'newer'} version of the package continues the run)"
            )
        elif before != after and _is_hash(before) and _is_hash(after):
            lines.append(f"{key} was {_OTHER_IMAGES if key == 'data.files' else 'a file of other content'}")
        elif before != after:
            lines.append(f"{key} was {_short(before)}, now {_short(after)}")
    return lines


_DECODING = "data.decoding"
"""Has a revision where images are read from files."""

_OTHER_IMAGES = "other images (files were added, removed or changed since)"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("sha256:")


def _same_at(place: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether what a revision is of is there in both."""
    if place == _DECODING and old.get("data.dataset") != new.get("data.dataset"):
        return False
    return class_at(old, place) == class_at(new, place)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    if _is_hash(value):
        return "a file"
    return text if text.isprintable() else repr(text)
