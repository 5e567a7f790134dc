"""Which font a picture's words are in: Pillow's own has Latin letters alone, and classes have names in any script."""

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "Arial Unicode.ttf",
    "arial.ttf", "msyh.ttc", "malgun.ttf", "meiryo.ttc",
)  # fmt: skip
"""Of which the first that the system has and that knows all letters of a text is taken."""


def lettering(text: str, size: int) -> tuple["Font", str]:
    """A font, and the text in letters that it has: where no font here knows one, its name takes its place (`zhe`)."""
    from PIL import ImageFont

    own = ImageFont.load_default(size)
    if not lacking(own, text):
        return own, text
    for name in FONTS:
        font = _system(name, size)
        if font is not None and not lacking(font, text):
            return font, text
    missing = lacking(own, text)
    return own, "".join(unicodedata.name(c, "?").split()[-1].lower() if c in missing else c for c in text)


def lacking(font: "Font", text: str) -> set[str]:
    """The characters of a text that a font draws as it draws one that does not exist."""
    return {c for c in set(text) if ord(c) > 126 and _drawn(font, c) == _drawn(font, "\uffff")}


def _drawn(font: "Font", character: str) -> bytes:
    return bytes(font.getmask(character))


@cache
def _system(name: str, size: int) -> "Font | None":
    from PIL import ImageFont

    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
