"""What all methods share that look at features which are learned already: where these come from."""

from typing import Literal, Required, TypedDict, Unpack

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.distributed import Share
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.modules import ImageData
from usl_lightning.features.images import image_features, read_features, read_share
from usl_lightning.features.parts import Place
from usl_lightning.features.published import (
    beside_published,
    published_encoder,
    random_encoder,
    seen_by,
    source_features,
)
from usl_lightning.models.backbones import backbone_names
from usl_lightning.models.encoder import Encoder, load_encoder
from usl_lightning.models.heads import with_projection
from usl_lightning.models.method import Method


class SourceOptions(TypedDict, total=False):
    """Parameters that say where the features come from: see `FeatureMethod`."""

    init_from: str | None
    weights: Literal["online", "ema"]
    backbone: list[str] | str | None
    pretrained: bool
    features: str | None
    cache: str | None


class FeatureOptions(SourceOptions, total=False):
    """Parameters that methods hand on to `FeatureMethod`."""

    image: Required[ImageSpec]


class HeadedSource(SourceOptions, total=False):
    """Parameters that say where the features come from, and of which of a network's outputs: see `HeadedMethod`."""

    head: Literal["encoder", "projection"]


class HeadedOptions(HeadedSource, total=False):
    """Parameters that methods hand on to `HeadedMethod`."""

    image: Required[ImageSpec]


class FeatureMethod(Method):
    """Base of the methods that work on features that are learned already.

    The features are those of a checkpoint's encoder (`init_from`), of a published network (`backbone`), of both side by
    side, or are read from a file (`features`).

    Args:
        image: channels, size and statistics of the images.
        init_from: checkpoint of any earlier stage whose encoder gives the features.
        weights: which of the checkpoint's: `online`, or `ema`, the moving average that stage 3 keeps.
        backbone: a network of timm that gives the features, or several, whose features stand side by side, after those
            of the checkpoint if there is one; it looks at the original images in its own size, whatever
            data.image_size says.
        pretrained: with its published weights; false: with random ones on the images as they are, to compare with.
        features: `.npy` or `.npz` file of features; see `read_features`.
        cache: folder to keep computed features in; default: $USL_CACHE, else ~/.cache/usl-lightning.

    Attributes:
        needs_network: whether features have to be computed, on all devices.
        sharded: whether each process works on its share of the images alone.
    """

    needs: tuple[str, ...] = ("init_from or backbone or features",)
    encoder: Encoder
    sharded: bool = False

    def __init__(
        self,
        image: ImageSpec,
        init_from: str | None = None,
        weights: Literal["online", "ema"] = "online",
        backbone: list[str] | str | None = None,
        pretrained: bool = True,
        features: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        given = {"init_from": init_from, "backbone": backbone, "features": features}
        names = " and ".join(f"model.{name}" for name, value in given.items() if value is not None)
        if features is not None and names != "model.features":
            raise UslError(f"{names} are given; expected one source of features")
        if init_from is not None and backbone is not None and not pretrained:
            raise UslError(
                f"{names} are given, and model.pretrained is false; beside a checkpoint a network is published"
            )
        self.image, self.backbone = image, None if backbone is None else ",".join(backbone_names(backbone))
        self.init_from, self.weights, self.pretrained = init_from, weights, pretrained
        self.features, self.cache = features, cache

    @property
    def has_features(self) -> bool:
        """Whether a source of features is given."""
        return self.features is not None or self.init_from is not None or self.backbone is not None

    @property
    def needs_network(self) -> bool:
        """False if what is worked on is there already."""
        return self.features is None

    def load_network(self) -> None:
        """Load the network that gives the features.

        Raises:
            UslError: none is given, it cannot be loaded, or it is for images of another size.
        """
        if self.init_from is not None:
            self.encoder = load_encoder(self.init_from, self.weights)
            _check_size(self.encoder.image, self.image, self.init_from)
            if self.backbone is not None:
                self.encoder = beside_published(self.encoder, self.backbone)
        elif self.backbone is not None:
            named = self.backbone
            self.encoder = published_encoder(named) if self.pretrained else random_encoder(named, self.image)
        elif self.needs_network:
            raise UslError(
                "model.init_from: expected the checkpoint whose encoder gives the features (or model.backbone, a "
                "published network, or model.features, a file)"
            )

    def as_pass(self) -> LightningModule:
        """A module whose `predict_step` gives the evidence of a whole data set, the one "batch" of a prediction."""
        return _Pass(self)

    def sees(self, source: ImageSource) -> ImageSource:
        """Images as a published network looks at them; else as they are."""
        return source if self.backbone is None or not self.pretrained else seen_by(self.backbone, source)

    def evidence(self, data: ImageData) -> Tensor:
        """What is worked on, one row for each image, or each of this process's share: features, float [n, d]."""
        if self.sharded:
            return check_share(self._evidence(data), Place(data.trainer))
        return self._evidence(data)

    def _evidence(self, data: ImageData) -> Tensor:
        place = Place(data.trainer)
        if self.features is not None and self.sharded:
            return read_share(self.features, data.train_source, place.share(len(data.train_source)))
        if self.features is not None:
            return read_features(self.features, data.train_source)
        seen = self.sees(data.train_source)
        if seen is data.train_source:
            return image_features(self.encoder, data, cache=self.cache, sharded=self.sharded)
        return source_features(self.encoder, seen, place, workers=data.workers, cache=self.cache, sharded=self.sharded)


class HeadedMethod(FeatureMethod):
    """Base of those whose features may be what is behind the encoder.

    Args:
        head: what gives the features: the `encoder` of the checkpoint or published network, or the `projection` behind
            it, which the published USL features are of: of a checkpoint of stage 1, or of one of CLIP's networks.
        source: where the features come from: see `FeatureMethod`.
    """

    def __init__(self, *, head: Literal["encoder", "projection"] = "encoder", **source: Unpack[FeatureOptions]) -> None:
        super().__init__(**source)
        if head == "projection" and ((self.init_from is None) == (self.backbone is None) or not self.pretrained):
            raise UslError(
                "model.head: a projection is of one network; expected model.init_from, or a published model.backbone"
            )
        self.head = head

    def load_network(self) -> None:
        """Load the network that gives the features: see `FeatureMethod`."""
        if self.head == "projection" and self.backbone is not None:
            self.encoder = published_encoder(self.backbone, projection=True)
            return
        super().load_network()
        if self.head == "projection" and self.init_from is not None:
            self.encoder = with_projection(self.encoder, self.init_from)


class _Pass(LightningModule):
    """Lets a trainer compute a method's evidence on all its devices, as a prediction of one batch: the whole data set.

    Args:
        method: whose evidence it is.
    """

    def __init__(self, method: FeatureMethod) -> None:
        super().__init__()
        self.method = method

    def setup(self, stage: str) -> None:
        """Load the network."""
        self.method.load_network()

    def sees(self, source: ImageSource) -> ImageSource:
        """Images as the method looks at them."""
        return self.method.sees(source)

    def predict_step(self, data: ImageData, batch_idx: int) -> Tensor:
        """The evidence, float [n, d]."""
        return self.method.evidence(data)


def check_share(features: Tensor, place: Place) -> Tensor:
    """Features [m, d] of this process's share, if those of all processes have a direction to compare.

    Raises:
        UslError: on every process, so that none waits for another: NaN, infinite values or a row of zeros somewhere.
    """
    share = Share(len(features), place.device, True)
    wrong = torch.nonzero(~(features.isfinite().all(1) & features.any(1)))[:1, 0]
    first = torch.full((), share.count) if not len(wrong) else share.first + wrong[0]
    position = -int(share.largest(-first.to(place.device)))
    if position < share.count:
        raise UslError(f"features: NaN, infinite values or nothing but zeros in row {position}; extract them again")
    return features


def _check_size(trained: ImageSpec, given: ImageSpec, path: str) -> None:
    sizes = [f"{spec.channels}×{spec.height}×{spec.width}" for spec in (trained, given)]
    if sizes[0] != sizes[1]:
        raise UslError(
            f"model.init_from: {path} was trained on {sizes[0]} images, these are {sizes[1]}; use the "
            "checkpoint of this data set, or the same --data.image_size and --data.channels"
        )
