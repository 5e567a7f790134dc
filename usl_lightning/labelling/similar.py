"""Which images look like one that is to be labelled, by the features it was chosen by."""

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
    """

    def __init__(self, images: NDArray[np.int64], features: NDArray[np.floating]) -> None:
        self._row = {int(image): row for row, image in enumerate(images)}
        self._images = images
        self._features = features.astype(np.float32)

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
        except (FileNotFoundError, UslError, ValueError, TypeError, KeyError):
            return None
        same = index.dataset is not None and index.dataset.size == total and len(images) == len(features)
        return cls(images, features) if same and set(index.indices[:1]) <= set(images.tolist()) else None

    def near(self, image: int, count: int) -> list[int]:
        """Up to `count` other images, the nearest first; none if this one has no features."""
        row = self._row.get(image)
        if row is None:
            return []
        distances = ((self._features - self._features[row]) ** 2).sum(1)
        order = np.argsort(distances, kind="stable")
        return [int(self._images[i]) for i in order[: count + 1] if i != row][:count]
