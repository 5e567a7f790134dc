"""What makes two runs of a stage the same, told without importing torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.moved import moved
from usl_lightning.base.once import noted_hash
from usl_lightning.base.version import __version__
from usl_lightning.data.images.catalog import FOLDER_SETS
from usl_lightning.data.images.rendering import VERSION as DECODING
from usl_lightning.data.images.signature import data_signature
from usl_lightning.stage.revisions import class_at, revisions

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
            fields["data.decoding.revision"] = DECODING
    return fields | revisions(flat)


def _content(key: str, path: Path) -> str:
    if not path.is_file():
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
        if before != after and name == "revision" and isinstance(new.get(key, old.get(key)), int):
            was, now = old.get(key, 1), new.get(key, 1)
            lines.append(
                f"{class_at({**old, **new}, place)} was revision {was}, now {now} (what it computes has changed; the "
                f"{'older' if was < now else 'newer'} version of the package continues the run)"
            )
        elif before != after:
            lines.append(f"{key} was {_short(before)}, now {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text[:19] + "…" if text.startswith("sha256:") else text
