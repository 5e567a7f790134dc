"""Some images of a source as a set of their own: an imbalanced version, a share."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.images.decode import Interpolation
from usl_lightning.data.images.source import ImageSource, dataset_id
from usl_lightning.labels import LabelIndex


class SubsetSource(ImageSource):
    """Images of another source, in the order of their positions there.

    Its fingerprint is of the whole's and of the positions, so that what was chosen from it is of no other set.

    Args:
        whole: all images.
        positions: int64 [n], rising.
    """

    def __init__(self, whole: ImageSource, positions: Tensor) -> None:
        self.whole, self.positions = whole, positions
        self.name, self.split, self.classes = whole.name, whole.split, whole.classes
        self.labels, self.rendering, self.skipped = whole.labels[positions], whole.rendering, whole.skipped
        self.channels, self.height, self.width = whole.channels, whole.height, whole.width
        self.files = None if whole.files is None else tuple(whole.files[i] for i in positions.tolist())

    def read(self, indices: Tensor) -> Tensor:
        return self.whole.read(self.positions[indices])

    def read_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return self.whole.read_batches(self.positions[batch] for batch in batches)

    def content_hashes(self, images: Iterable[int]) -> Iterator[str]:
        return self.whole.content_hashes(self.positions[torch.tensor(list(images), dtype=torch.int64)].tolist())

    def resized(self, size: int, interpolation: Interpolation) -> "SubsetSource":
        return SubsetSource(self.whole.resized(size, interpolation), self.positions)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"subset of {self.whole.fingerprint}\0".encode())
        digest.update(self.positions.numpy().astype("<i8").tobytes())
        return "sha256:" + digest.hexdigest()


def subset_of(whole: ImageSource, path: str) -> SubsetSource:
    """The images that a label index names; its labels are not looked at.

    Args:
        whole: all images.
        path: the index, such as `usl labels draw` writes.

    Raises:
        UslError: it is damaged, of another data set, or names no image.
    """
    index = LabelIndex.read(path).placed(dataset_id(whole), (), whole.files, whole.content_hashes)
    if not index.indices:
        raise UslError(f"data.subset_file: {path}: names no image")
    return SubsetSource(whole, torch.tensor(sorted(index.indices), dtype=torch.int64))
