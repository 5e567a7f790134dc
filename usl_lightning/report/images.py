"""The pictures of a report: small, and inside the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from usl_lightning.base.errors import UslError

if TYPE_CHECKING:
    from torch import Tensor

    from usl_lightning.data.images.source import ImageSource

SIDE = 112
"""Pixels of the longer side, at most."""

TINY = 64
"""Images up to this size are kept to the pixel."""

_QUALITY = 80  # of a JPEG


@dataclass(frozen=True)
class Thumbnail:
    """A picture in the page.

    Attributes:
        uri: `data:…`.
        width, height: in its own pixels.
    """

    uri: str
    width: int
    height: int

    @property
    def tiny(self) -> bool:
        """It is to be magnified, pixel by pixel."""
        return max(self.width, self.height) <= TINY


def open_images(config: Mapping[str, Any]) -> "ImageSource":
    """The images a stage looked at.

    Args:
        config: of the stage, dotted keys.

    Raises:
        UslError: they are not there any more.
    """
    from usl_lightning.data.images.opening import open_given

    given = {key.removeprefix("data."): value for key, value in config.items() if key.startswith("data.")}
    if "dataset" not in given:
        raise UslError("the stage's config.yaml names no data set")
    return open_given({**given, "download": False})


def thumbnails(source: "ImageSource", positions: Sequence[int]) -> list[Thumbnail]:
    """Pictures of some images of a data set.

    Args:
        source: the data set.
        positions: of the images, in its own order.

    Raises:
        UslError: an image cannot be read.
    """
    import torch

    pictures: list[Thumbnail] = []
    for batch in torch.split(torch.tensor(positions, dtype=torch.int64), 32):
        pictures += [thumbnail(image) for image in source.read(batch)]
    return pictures


def thumbnail(image: "Tensor") -> Thumbnail:
    """An image, uint8 [c, h, w] with c = 1 or 3, as a PNG if it is tiny, else as a smaller JPEG."""
    from PIL import Image

    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    tiny, buffer = max(picture.size) <= TINY, io.BytesIO()
    if tiny:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, format="JPEG", quality=_QUALITY)
    kind = "png" if tiny else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Thumbnail(uri, *picture.size)
