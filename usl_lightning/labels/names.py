"""Names: what is written in two ways is one name."""

import unicodedata


def composed(text: str) -> str:
    """Unicode's composed form (NFC): what is written in two ways is one text. macOS decomposes names of files."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
