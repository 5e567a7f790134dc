"""What every selector shares: features of the images, a budget, a choice, and images that are kept."""

from abc import abstractmethod
from typing import Any, ClassVar, Required, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.modules import ImageData
from usl_lightning.features.source import HeadedMethod, HeadedOptions, HeadedSource
from usl_lightning.labels import LabelIndex
from usl_lightning.vectors.density import keep_first


class SelectorOptions(HeadedOptions, total=False):
    """Parameters that methods hand on to `Selector`."""

    budget: Required[int]
    keep_from: str | None


class Selector(HeadedMethod):
    """Base of the methods that pick images to label from features that are learned already.

    Args:
        image: channels, size and statistics of the images.
        budget: number of images to pick, with those that are kept.
        keep_from: label index (short: --keep) whose images come first, with their labels; the rest of the
            budget is picked beside them. Those that were only added to it while labelling are kept beyond the budget.
            Selectors of later rounds must have it.
        source: where the features come from, and of which of a network's outputs: see `HeadedMethod`.

    Attributes:
        seeded: whether the seed can change the choice.
        clusters: int64 [n], the cluster of each image in the last choice; None of a method that makes none.
    """

    ranges: ClassVar[Ranges] = {"budget": whole(1)}

    verbs = ("select",)
    seeded: bool = True
    clusters: Tensor | None = None

    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        *,
        keep_from: str | None = None,
        **source: Unpack[HeadedSource],
    ) -> None:
        super().__init__(image=image, **source)
        self.budget, self.keep_from = budget, keep_from

    def setup(self, stage: str) -> None:
        """Load the network that gives the features."""
        self.load_network()

    def predict_step(self, data: ImageData, batch_idx: int) -> Tensor:
        """`evidence` of the data set as a whole, which is the one "batch" of a selection."""
        return self.evidence(data)

    def points(self, evidence: Tensor) -> Tensor:
        """What tells which pick is nearest to a kept image and gives its place to it: rows [n, …] to compare."""
        return F.normalize(evidence.float(), dim=1)

    @abstractmethod
    def choose(self, features: Tensor, seed: int) -> Tensor:
        """Pick `budget` distinct rows of the evidence [n, d]; int64, in order of choice."""

    def choose_beside(self, features: Tensor, kept: LabelIndex, seed: int) -> Tensor:
        """The kept images, then those picked beside them, int64 [budget]: here each kept one displaces a pick.

        Args:
            features: the evidence [n, d].
            kept: from 1 to `budget` images.
            seed: of the choice.
        """
        chosen = self.choose(features, seed)
        return keep_first(torch.tensor(kept.indices, device=chosen.device), chosen, self.points(features))

    def shard(self, sharded: bool) -> None:
        """Have each process work on its share of the images; called by methods that can, when they are built.

        Raises:
            UslError: with images to keep, of which each process would have to know the nearest picks.
        """
        if sharded and self.keep_from is not None:
            raise UslError("model.sharded: true cannot be with images to keep (--keep); leave one of them out")
        self.sharded = sharded

    def note_clusters(self, clusters: Tensor) -> None:
        """Keep the clusters of a choice, for the report."""
        self.clusters = clusters

    def kept(self, data: ImageData) -> LabelIndex | None:
        """The images to keep, with what labels they have.

        Raises:
            UslError: it is of another data set, or holds more images than the budget.
        """
        if self.keep_from is None:
            return None
        source = data.train_source
        index = LabelIndex.read(self.keep_from)
        index = index.placed(dataset_id(source), source.classes, source.files, source.content_hashes)
        if index.chosen > self.budget:
            raise UslError(
                f"model.keep_from: {self.keep_from} holds {index.chosen} images, the budget is {self.budget}; the "
                f"budget counts them too: give --model.budget {index.chosen} or more"
            )
        if index.plain and source.classes:
            known = source.labels[torch.tensor(index.indices, dtype=torch.int64)]
            if bool((known >= 0).all()):
                return index.with_labels(known.tolist(), source.classes)
        return index

    def settled(self, n: int) -> dict[str, Any]:
        """Parameters as they were used on `n` images, where that is not simply what was given; for the label index."""
        return {}

    def followers(self, chosen: Tensor) -> tuple[tuple[int, ...], ...]:
        """For each image of the last choice those that take its label as a pseudo-label in training; none here.

        Args:
            chosen: int64 [budget] on the CPU, the kept ones first.
        """
        return ()
