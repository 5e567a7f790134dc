"""Images with their neighbours, as USL-T trains on them."""

import logging
from typing import Any, ClassVar, Unpack

from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.data.batch import Batch
from usl_lightning.data.modules import ImageData, ImageOptions
from usl_lightning.data.sampling import Pairs, StepLoader
from usl_lightning.features.neighbors import encoder_neighbors, read_neighbors

log = logging.getLogger(__name__)


class NeighborData(ImageData):
    """Images, each with one of its nearest neighbours in a feature space that is learned already (USL-T).

    Args:
        neighbors: `.npy` file of int64 [n, k]: the neighbours of every image, computed once and fixed; or a `.npz`
            that `neighbors_from` has kept.
        neighbors_from: instead, the checkpoint of stage 1 whose encoder tells the neighbours; computed when training
            starts, and kept in the folder of features ($USL_CACHE).
        k: how many neighbours of each image are computed, beside the image itself, which is one of the candidates.
        batch_size: images of the global batch; as many neighbours come with them.
        images: as for `ImageData`.
    """

    ranges: ClassVar[Ranges] = {"k": whole(1)}

    needs = ("neighbors_from or neighbors",)

    def __init__(
        self,
        neighbors: str | None = None,
        neighbors_from: str | None = None,
        k: int = 20,
        batch_size: int = 1024,
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(batch_size=batch_size, **images)
        self.neighbors, self.neighbors_from, self.k = neighbors, neighbors_from, k

    def train_dataloader(self) -> StepLoader[Any]:
        """Endless `PairBatch`es that start where the trainer stands."""
        return self._steps(Pairs(self._draw("images", self.batch_size), self._table()))

    def val_dataloader(self) -> list[StepLoader[Batch]]:
        """A pass over all training images, also amid training: a cluster is empty only if none of them is in it."""
        return [self._pass(self.split)]

    def test_dataloader(self) -> list[StepLoader[Batch]]:
        """Passes over the training images and over the test images, for a look at the features."""
        return super().val_dataloader()

    def _table(self) -> Tensor:
        if self.neighbors is not None and self.neighbors_from is None:
            return read_neighbors(self.neighbors, self.train_source)
        if self.neighbors_from is not None and self.neighbors is None:
            most = max(1, len(self.train_source) - 1)
            if self.k > most:
                log.info("neighbours: k = %d instead of %d, for %d images", most, self.k, len(self.train_source))
                self.lowered["k"] = most
            return encoder_neighbors(self.neighbors_from, self, self.k)
        raise UslError(
            "data.neighbors_from: expected the checkpoint of stage 1 whose features tell the neighbours, or a table of "
            "them in data.neighbors; one of the two"
        )
