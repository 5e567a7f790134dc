"""Texts as people and their spreadsheets have them."""

import re
import unicodedata

_FORMULA = re.compile("'*[=+\\-@\t\r]")


def guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe before what would begin one."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """What `guarded` was given."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def composed(text: str) -> str:
    """Unicode's composed form (NFC): what is written in two ways is one text. macOS decomposes names of files."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
