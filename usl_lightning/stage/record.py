"""What `stage.json` has to be: people copy, edit and cut such files."""

from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 1e10
"""Seconds of a stage: three centuries."""


def is_finite(value: Any) -> bool:
    """Whether it is a number, as JSON has them, that arithmetic can be done with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (lambda value: value in ("running", "complete"), "running or complete"),
    "identity_hash": (lambda value: isinstance(value, str), "a text"),
    "identity": (lambda value: isinstance(value, dict), "keys and values"),
    "seconds": (lambda value: is_finite(value) and 0 <= value < _LONGEST, "a number"),
    "metrics": (lambda value: isinstance(value, dict), "keys and values"),
    "outputs": (lambda value: isinstance(value, dict), "keys and values"),
    "machine": (lambda value: isinstance(value, dict), "keys and values"),
}
_REQUIRED = ("status", "identity_hash", "identity")


def problem_of(record: Any) -> str | None:
    """Why a value is no record of a stage; None if it is one."""
    if not isinstance(record, Mapping):
        return "not the record of a stage"
    for key, (fits, expected) in _FIELDS.items():
        if key in record and not fits(record[key]):
            return f"not the record of a stage, {key}: expected {expected}"
        if key not in record and key in _REQUIRED:
            return f"not the record of a stage, it has no {key}"
    for name, value in record.get("metrics", {}).items():
        if not _fits(name, value):
            return f"not the record of a stage, metrics: {name} is no figure"
    return None


def _fits(name: str, value: Any) -> bool:
    """Whether a figure is of its kind."""
    if value is None:
        return True
    if name.endswith("_interval"):
        return isinstance(value, list) and len(value) == 2 and all(map(is_finite, value))
    return is_finite(value) or not name.endswith("accuracy")
