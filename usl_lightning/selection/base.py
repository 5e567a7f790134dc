"""What every selector shares: features of the images, a budget, and a choice."""

from abc import abstractmethod
from pathlib import Path

from pytorch_lightning import LightningModule
from torch import Tensor

from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.errors import UslError
from usl_lightning.models.encoder import Encoder, load_encoder


class Selector(LightningModule):
    """Base of the methods that pick images to label from features that are learned already.

    Args:
        image: channels, size and statistics of the images.
        budget: number of images to pick.
        init_from: checkpoint whose encoder gives the features.

    Attributes:
        uses_features: False for methods that choose blindly; nothing is loaded or computed for them.
    """

    encoder: Encoder
    uses_features: bool = True

    def __init__(self, image: ImageSpec, budget: int, init_from: str | None) -> None:
        super().__init__()
        if budget < 1:
            raise UslError(f"model.budget: {budget} images cannot be picked; expected at least 1")
        self.image, self.budget, self.init_from = image, budget, init_from

    def setup(self, stage: str) -> None:
        """Load the encoder."""
        if self.init_from is None:
            raise UslError("model.init_from: expected the checkpoint whose encoder gives the features")
        self.encoder = load_encoder(self.init_from)
        trained, given = (f"{s.channels}×{s.height}×{s.width}" for s in (self.encoder.image, self.image))
        if trained != given:
            raise UslError(
                f"model.init_from: {self.init_from} was trained on {trained} images, these are {given}; use the "
                "checkpoint of this data set, or the same --data.image_size and --data.channels"
            )
        self.encoder.to(self.device)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Features [b, d] of unaugmented images."""
        return self.encoder(batch.images).float()

    def write_outputs(self, folder: Path) -> None:
        """Write files that other stages can take from this one by their names without suffix; none here."""

    @abstractmethod
    def choose(self, features: Tensor, seed: int) -> Tensor:
        """Pick `budget` distinct rows of `features` [n, d]; int64, in order of choice."""
