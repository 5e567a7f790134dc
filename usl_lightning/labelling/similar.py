"""Which images look like one that is to be labelled, by the features it was chosen by."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.errors import UslError
from usl_lightning.labels import LabelIndex


class SimilarImages:
    """Neighbours among the images of a selection's overview: the chosen ones and some thousand others.

    Args:
        images: int64 [m], positions in the data set.
        features: float [m, d].
        chosen: how many of them, the first, were chosen.

    Attributes:
        row_of: of each image.
        features: as given.
        others: int64, rows of those that were not chosen.
    """

    def __init__(self, images: NDArray[np.int64], features: NDArray[np.floating], chosen: int = 0) -> None:
        self.row_of = {int(image): row for row, image in enumerate(images)}
        self.others = np.arange(chosen, len(images))
        self._images = images
        self.features = features.astype(np.float32)

    @classmethod
    def beside(cls, index: LabelIndex, overview: Path) -> "SimilarImages | None":
        """Those of the selection that wrote a label file; None if it left no features, or those of other images.

        Args:
            index: the label file.
            overview: the `overview.npz` beside it.
        """
        try:
            kept = load_arrays(overview)
            images, features, total = kept["images"], kept["features"], int(kept["total"])
            chosen = int(kept["chosen"])
        except (FileNotFoundError, UslError, ValueError, TypeError, KeyError):
            return None
        same = index.dataset is not None and index.dataset.size == total and len(images) == len(features)
        whole = same and features.ndim == 2 and bool(np.isfinite(features).all())
        return cls(images, features, chosen) if whole and set(index.indices[:1]) <= set(images.tolist()) else None

    def near(self, image: int, count: int, among: Collection[int] | None = None) -> list[int]:
        """Up to `count` other images, the nearest first; none if this one has no features.

        Args:
            image: position in the data set.
            count: how many, at most.
            among: images to look at; None: all.
        """
        row = self.row_of.get(image)
        if row is None:
            return []
        rows = None if among is None else [self.row_of[one] for one in among if one in self.row_of and one != image]
        asked = np.arange(len(self._images)) if rows is None else np.array(rows, dtype=np.int64)
        distances = ((self.features[asked] - self.features[row]) ** 2).sum(1)
        order = asked[np.argsort(distances, kind="stable")[: count + 1]]
        return [int(self._images[i]) for i in order if i != row][:count]
