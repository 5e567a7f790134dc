"""What makes two runs of a stage the same, told without importing torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import sha256_of_file
from usl_lightning.base.version import __version__
from usl_lightning.data.images.signature import data_signature

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


def stage_identity(command: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines a stage's result: its parameters, the content of its files, its data, this version.

    Args:
        command: `fit` or `select`.
        flat: the configuration file and the overrides, as dotted keys.

    Raises:
        UslError: a file that a parameter names does not exist.
    """
    return {"command": command, "version": __version__, **content_fields(flat)}


def content_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`identity_fields` with the content of the files and of the data set in place of their paths.

    Raises:
        UslError: a file that a parameter names does not exist.
    """
    fields = identity_fields(flat)
    for key, value in fields.items():
        if value is not None and names_a_file(key):
            path = Path(str(value))
            if not path.is_file():
                raise UslError(f"{key}: no such file: {path}")
            fields[key] = sha256_of_file(path)
    if "data.dataset" in flat:
        names = ("split", "image_size", "labels_file", "class_list", "download")
        given: dict[str, Any] = {name: flat[f"data.{name}"] for name in names if f"data.{name}" in flat}
        directory = flat.get("data.dir")
        fields["data.files"] = data_signature(str(flat["data.dataset"]), directory and str(directory), **given)
    return fields


def digest(fields: Mapping[str, Any]) -> str:
    """A hash of identity fields, independent of their order."""
    text = json.dumps(fields, sort_keys=True, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`"model.threshold was 0.95, now 0.9"` for each field that differs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, "not set"), new.get(key, "not set")
        if before != after:
            lines.append(f"{key} was {_short(before)}, now {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text[:19] + "…" if text.startswith("sha256:") else text
