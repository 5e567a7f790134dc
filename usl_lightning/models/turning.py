"""Images turned by quarters, for tasks that ask by how much: RotNet's, S4L's and SeLa's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import Key

TURNS = 4
"""By 0, 90, 180 and 270 degrees."""


def turned(images: Tensor) -> list[Tensor]:
    """The images [b, c, s, s], turned counter-clockwise by 0, 90, 180 and 270 degrees."""
    return [torch.rot90(images, turns, (2, 3)) for turns in range(TURNS)]


def turned_views(images: Tensor, view: nn.Module, key: Key) -> Tensor:
    """A view of each image [b, c, s, s] in each of its turns, [4b, c, h, w]: all as they are, all turned by 90, ….

    Args:
        images: uint8.
        view: is called once for each turn.
        key: of the b slots; each turn draws from a fold of its own.
    """
    return torch.cat([view(turn, key.fold(number)) for number, turn in enumerate(turned(images))])


def turning_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of the turns, of logits [4b, 4] in the order of `turned_views`."""
    return F.cross_entropy(logits, turns_of(logits))


def turns_of(logits: Tensor) -> Tensor:
    """By how many quarters the images are turned, int64 [4b], of logits [4b, 4]."""
    return torch.arange(TURNS, device=logits.device).repeat_interleave(len(logits) // TURNS)


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
