"""What `evaluation.json` has to be: people copy, edit and cut such files. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import Any

NETWORKS = ("ema", "classifier")
"""Whose confusions a report shows: the first there is."""


def problem_of(content: Any) -> str | None:
    """Why a value is no evaluation; None if it is one."""
    if not isinstance(content, Mapping):
        return "expected keys and values"
    for key in ("notes", "metrics"):
        if not isinstance(content.get(key, {}), Mapping):
            return f"{key}: expected keys and values"
    if not all(isinstance(note, str) for note in content.get("notes", {}).values()):
        return "notes: expected texts"
    judged = content.get("judged_by_labels")
    if judged is not None and not (isinstance(judged, Mapping) and _is_reliability(judged.get("reliability"))):
        return "judged_by_labels: reliability: expected three figures of each bin"
    classes = content.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "classes: expected texts"
    for network in NETWORKS:
        scores = content.get(network)
        if isinstance(scores, Mapping):
            confusion = scores.get("confusion")
            if not isinstance(scores.get("images"), int):
                return f"{network}: images: expected how many there were"
            if not isinstance(confusion, str) and not is_confusion(confusion, len(classes)):
                return f"{network}: confusion: expected {len(classes)} rows of {len(classes)} counts"
    return None


def is_confusion(rows: Any, classes: int) -> bool:
    """Whether these are the counts of a confusion matrix."""
    return _is_list(rows, classes) and all(
        _is_list(row, classes) and all(type(count) is int and count >= 0 for count in row) for row in rows
    )


def _is_reliability(bins: Any) -> bool:
    """Whether each bin of confidence has three figures, and no negative one."""
    if not isinstance(bins, list):
        return False
    return all(
        _is_list(each, 3) and all(type(one) in (int, float) and 0 <= one < 1e15 for one in each) for each in bins
    )


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length
