"""Class paths of earlier versions of this package, and where the classes are now. Imports nothing heavy.

Runs and configurations of those versions name them; they go on with the same classes.
"""

import re
from collections.abc import Mapping
from typing import Any

MOVED = {
    "usl_lightning.data.steps": "usl_lightning.data.views.steps",
    "usl_lightning.data.randaugment": "usl_lightning.data.views.randaugment",
    "usl_lightning.data.modules.NeighborData": "usl_lightning.features.neighbor_data.NeighborData",
}
"""Modules and classes, by their earlier names."""

_EARLIER = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, MOVED))})(?!\w)")


def moved_text(text: str) -> str:
    """A text, such as that of a configuration file, with the present name of every class that has moved."""
    return _EARLIER.sub(lambda earlier: MOVED[earlier[0]], text)


def moved(value: Any) -> Any:
    """The same of all texts in a nested value."""
    if isinstance(value, str):
        return moved_text(value)
    if isinstance(value, Mapping):
        return {key: moved(item) for key, item in value.items()}
    return [moved(item) for item in value] if isinstance(value, list) else value
