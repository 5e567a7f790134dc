"""RotNet: predicting by how much an image was turned (Gidaris, Singh and Komodakis, ICLR 2018)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.turning import TURNS, check_square, turned
from usl_lightning.pretrain.pretrain_module import PretrainModule


class RotNet(PretrainModule):
    """Who knows what is up in an image knows what is in it: all four turns of each image in one batch, told apart.

    Of no use where nothing is upright: cells, satellite images, and half of the digits.

    Args:
        image: channels, size and statistics of the images, which must be square; the command line takes it from the
            data.
        view: draws a view of each turned image.
        optimizer: how the weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        init_from: checkpoint of an earlier stage whose encoder to start from.
        knn_k: neighbours of the kNN monitor.
    """

    ranges: ClassVar[Ranges] = {}

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        backbone: str = "resnet18_cifar",
        pretrained: bool = False,
        init_from: str | None = None,
        knn_k: int = 200,
    ) -> None:
        check_square(image, "RotNet")
        encoder = Encoder(backbone, image, pretrained=pretrained)
        super().__init__(encoder, optimizer, init_from=init_from, knn_k=knn_k)
        self.view = view
        self.head = nn.Linear(encoder.feature_dim, TURNS)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of four times the global batch: cross-entropy of the turn (Eqs. 2 and 3)."""
        views = [self.view(images, batch.key.fold("view", turn)) for turn, images in enumerate(turned(batch.images))]
        logits = self.head(self.encoder(torch.cat(views)))
        turns = torch.arange(TURNS, device=logits.device).repeat_interleave(len(batch))
        loss = F.cross_entropy(logits, turns)
        self.log_training(loss=loss, turns_told=(logits.argmax(1) == turns).float().mean())
        return loss
