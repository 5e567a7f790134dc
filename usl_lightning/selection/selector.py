"""What every selector shares: features of the images, a budget, a choice, and images that are kept."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.modules import ImageData
from usl_lightning.features.images import image_features, published_encoder, read_features
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import Encoder, load_encoder
from usl_lightning.models.method import Method


class Selector(Method):
    """Base of the methods that pick images to label from features that are learned already.

    The features are those of a checkpoint's encoder (`init_from`), of a published network (`backbone`), or are
    read from a file (`features`); just one of the three must be given.

    Args:
        image: channels, size and statistics of the images.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint of any earlier stage whose encoder gives the features.
        weights: which of the checkpoint's: `online`, or `ema`, the moving average that stage 3 keeps.
        backbone: a network of timm that gives the features.
        pretrained: with its published weights; false: with random ones, to compare with.
        features: `.npy` or `.npz` file of features; see `read_features`.
        keep_from: label index (short: --keep) whose images come first, with their labels; the rest of the
            budget is picked beside them.
        cache: folder to keep computed features in; default: $USL_CACHE, else ~/.cache/usl-lightning.

    Attributes:
        needs_network: whether features have to be computed, on all devices.
        seeded: whether the seed can change the choice.
        clusters: int64 [n], the cluster of each image in the last choice; None of a method that makes none.
    """

    ranges: ClassVar[Ranges] = {"budget": whole(1)}

    verbs = ("select",)
    seeded: bool = True
    encoder: Encoder
    clusters: Tensor | None = None

    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        weights: Literal["online", "ema"] = "online",
        backbone: str | None = None,
        pretrained: bool = True,
        features: str | None = None,
        keep_from: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        given = {"init_from": init_from, "backbone": backbone, "features": features}
        if sum(value is not None for value in given.values()) > 1:
            names = " and ".join(f"model.{name}" for name, value in given.items() if value is not None)
            raise UslError(f"{names} are given; expected one source of features")
        self.image, self.budget, self.keep_from = image, budget, keep_from
        self.init_from, self.weights, self.backbone, self.pretrained = init_from, weights, backbone, pretrained
        self.features, self.cache = features, cache

    @property
    def has_features(self) -> bool:
        """Whether a source of features is given."""
        return self.features is not None or self.init_from is not None or self.backbone is not None

    @property
    def needs_network(self) -> bool:
        """False if what the choice is made from is there already."""
        return self.features is None

    def setup(self, stage: str) -> None:
        """Load the network that gives the features."""
        if self.init_from is not None:
            self.encoder = load_encoder(self.init_from, self.weights)
            _check_size(self.encoder.image, self.image, self.init_from)
        elif self.backbone is not None:
            self.encoder = published_encoder(self.backbone, self.image, pretrained=self.pretrained)
        elif self.needs_network:
            raise UslError(
                "model.init_from: expected the checkpoint whose encoder gives the features (or model.backbone, a "
                "published network, or model.features, a file)"
            )

    def predict_step(self, data: ImageData, batch_idx: int) -> Tensor:
        """`evidence` of the data set as a whole, which is the one "batch" of a selection."""
        data.setup("predict")
        return self.evidence(data)

    def evidence(self, data: ImageData) -> Tensor:
        """What the choice is made from, one row for each image: features, float [n, d]."""
        if self.features is not None:
            return read_features(self.features, data.train_source)
        return image_features(self.encoder, data, cache=self.cache)

    def points(self, evidence: Tensor) -> Tensor:
        """What tells which pick is nearest to a kept image and gives its place to it: rows [n, …] to compare."""
        return F.normalize(evidence.float(), dim=1)

    @abstractmethod
    def choose(self, features: Tensor, seed: int) -> Tensor:
        """Pick `budget` distinct rows of the evidence [n, d]; int64, in order of choice."""

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
        if len(index) > self.budget:
            raise UslError(
                f"model.keep_from: {self.keep_from} holds {len(index)} images, the budget is {self.budget}; the "
                f"budget counts them too: give --model.budget {len(index)} or more"
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


def _check_size(trained: ImageSpec, given: ImageSpec, path: str) -> None:
    sizes = [f"{spec.channels}×{spec.height}×{spec.width}" for spec in (trained, given)]
    if sizes[0] != sizes[1]:
        raise UslError(
            f"model.init_from: {path} was trained on {sizes[0]} images, these are {sizes[1]}; use the "
            "checkpoint of this data set, or the same --data.image_size and --data.channels"
        )
