"""The version of this package; it is part of what makes two runs the same."""

__version__ = "0.1.0"
