"""Whether the images of a folder are all of one size, as far as evenly spaced ones tell. PIL and NumPy only."""

from usl_lightning.base.errors import UslError
from usl_lightning.data.images.decode import probe
from usl_lightning.data.images.folders import FileList
from usl_lightning.data.images.walk import UnreadableImageError

_PROBED = 256


def probed(count: int) -> list[int]:
    """Which of so many files have their headers read to decide size and channels: at most 256, evenly spaced."""
    most = min(count, _PROBED)
    return [i * count // most for i in range(most)]


def other_size(where: str, size: tuple[int, int], first: str, its: tuple[int, int]) -> str:
    """What to say of a file that has another size than the first.

    Args:
        where, first: the two files.
        size, its: width and height of each, in pixels.
    """
    return (
        f"{where} is {size[0]}×{size[1]}, but {first} is {its[0]}×{its[1]}; give --data.image_size to bring all images"
        " to one size"
    )


def check_one_size(listing: FileList, *, skip: bool) -> None:
    """Refuse a folder of images of several sizes, by the headers that `FolderSource` would look at.

    Args:
        listing: the files.
        skip: pass over those that cannot be read.

    Raises:
        UslError: names two; or one that cannot be read.
    """
    first: tuple[str, tuple[int, int]] | None = None
    for i in probed(len(listing.files)):
        where = listing.where(i)
        try:
            found = probe(listing.read(i), where)
        except UnreadableImageError:
            if skip:
                continue
            raise
        first = first or (where, (found.width, found.height))
        if (found.width, found.height) != first[1]:
            raise UslError(other_size(where, (found.width, found.height), *first))
