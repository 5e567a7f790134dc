"""The label index and its formats."""

from usl_lightning.labels.index import LabelIndex

__all__ = ["LabelIndex"]
