"""PNG files that tell which program, and which of its commands, made them."""

from pathlib import Path
from typing import TYPE_CHECKING

from usl_lightning.base.atomic import atomic_path

if TYPE_CHECKING:
    from PIL import Image

MADE_BY = "usl-lightning"


def save_png(picture: "Image.Image", path: str | Path, command: str | None = None) -> None:
    """Write a picture, atomically.

    Args:
        picture: any.
        path: the file.
        command: that made it, if it may write over a picture of its own.

    Raises:
        UslError: it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text("Software", MADE_BY)
    if command is not None:
        about.add_text("Source", command)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=about)


def is_png_of(command: str, start: bytes) -> bool:
    """Whether a file that starts so is a picture that this command made."""
    return start.startswith(b"\x89PNG") and f"tEXtSource\0{command}".encode() in start
