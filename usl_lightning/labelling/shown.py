"""What the labelling page asks of images, wherever they are."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from usl_lightning.labels import LabelIndex

_PNG_PIXELS = 256 * 256  # larger pictures are sent as JPEG


class Pictures(ABC):
    """Images by their position in the data set.

    Attributes:
        classes: those that the data set itself names, so that nobody can rename them here.
    """

    classes: frozenset[str] = frozenset()

    @abstractmethod
    def match(self, index: LabelIndex) -> None:
        """Take the images of this label file for those to label.

        Raises:
            UslError: these are not the images that it means.
        """

    @abstractmethod
    def check(self, image: int) -> None:
        """Make sure that an image to label is still what it was.

        Raises:
            UslError: it is another one, or gone.
        """

    @abstractmethod
    def note(self, index: LabelIndex) -> None:
        """Take images that were added to this label file for those to label, too.

        Raises:
            UslError: they are not the images that it means.
        """

    @abstractmethod
    def entry(self, image: int) -> tuple[str, str]:
        """The file of an image that was not chosen, and the hash of what was shown of it; empty without files.

        Raises:
            UslError: it is no image of the data set, or was not shown, or is another by now.
        """

    @abstractmethod
    def name(self, image: int) -> str:
        """What to call it.

        Raises:
            UslError: it is not known.
        """

    @abstractmethod
    def place(self, name: str) -> int:
        """Position of the image that is called so.

        Raises:
            UslError: there is none.
        """

    @abstractmethod
    def places(self) -> Iterable[int]:
        """Positions of all images whose names are known."""

    @abstractmethod
    def has(self, image: int) -> bool:
        """Whether it can be shown."""

    @abstractmethod
    def pixels(self, image: int) -> NDArray[np.uint8]:
        """uint8 [h, w, c], c = 1 or 3.

        Raises:
            UslError: it cannot be read.
        """

    def encoded(self, image: int, side: int) -> tuple[bytes, str]:
        """A file for the browser and its media type, at most `side` pixels wide and high.

        Raises:
            UslError: the image cannot be read.
        """
        array = self.pixels(image)
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        kind = "PNG" if picture.width * picture.height <= _PNG_PIXELS else "JPEG"
        content = io.BytesIO()
        picture.save(content, kind, quality=92)
        return content.getvalue(), f"image/{kind.lower()}"
