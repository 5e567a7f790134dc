"""RotNet: predicting by how much an image was turned (Gidaris, Singh and Komodakis, ICLR 2018)."""

from typing import ClassVar, Unpack

from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.turning import TURNS, check_square, turned_views, turning_loss, turns_of
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


class RotNet(PretrainModule):
    """Who knows what is up in an image knows what is in it: all four turns of each image in one batch, told apart.

    Of no use where nothing is upright: cells, satellite images, and half of the digits.

    Args:
        image: channels, size and statistics of the images, which must be square; the command line takes it from the
            data.
        view: draws a view of each turned image.
        optimizer: how the weights are updated.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {}

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_square(image, "RotNet")
        super().__init__(image, optimizer, **network)
        self.view = view
        self.head = nn.Linear(self.encoder.feature_dim, TURNS)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of four times the global batch: cross-entropy of the turn (Eqs. 2 and 3)."""
        logits = self.head(self.encoder(turned_views(batch.images, self.view, batch.key.fold("view"))))
        loss = turning_loss(logits)
        self.log_training(loss=loss, turns_told=(logits.argmax(1) == turns_of(logits)).float().mean())
        return loss
