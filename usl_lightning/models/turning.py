"""Images turned by quarters, for tasks that ask by how much: RotNet's and S4L's."""

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec

TURNS = 4
"""By 0, 90, 180 and 270 degrees."""


def turned(images: Tensor) -> list[Tensor]:
    """The images [b, c, s, s], turned counter-clockwise by 0, 90, 180 and 270 degrees."""
    return [torch.rot90(images, turns, (2, 3)) for turns in range(TURNS)]


def check_square(image: ImageSpec, name: str) -> None:
    """Refuse images that a quarter turn gives another shape.

    Raises:
        UslError: says what makes them square.
    """
    if image.height != image.width:
        raise UslError(
            f"{name}: the images are {image.height}×{image.width}, and a quarter turn of them has another shape; "
            "set data.image_size, which makes them square"
        )
