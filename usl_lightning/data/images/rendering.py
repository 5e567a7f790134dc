"""How files become pixels, as far as that can change: the state of `decode.py`, and the colour behind transparency."""

from functools import cache

from usl_lightning.base.errors import UslError, did_you_mean

VERSION = 2
"""Raised when the same file would give other pixels: decoded caches are made again, and runs of folders are other runs,
which say so by `data.decoding.revision`."""

WHITE = "white"


def rendering_of(background: str) -> str:
    """What a cache of pixels, or of what was computed from them, is to remember."""
    return f"{VERSION} #{bytes(colour_of(background)).hex()}"


@cache
def colour_of(name: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour.

    Args:
        name: of CSS (`white`), or `#rrggbb`.

    Raises:
        UslError: it is neither.
    """
    from PIL import ImageColor

    short = name.strip().lower()
    try:
        if short in ImageColor.colormap or (short.startswith("#") and len(short) in (4, 7)):
            red, green, blue = ImageColor.getrgb(short)[:3]
            return red, green, blue
    except ValueError:
        pass
    hint = did_you_mean(short, tuple(ImageColor.colormap))
    raise UslError(f"data.background: '{name}' is no colour{hint}; expected a name such as white, or '#rrggbb'")
