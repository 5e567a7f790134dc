"""Supervised training: what the labels are worth without the unlabelled images."""

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.semisup.semisup_module import SemiSupervisedModule


class Supervised(SemiSupervisedModule):
    """Cross-entropy on the labelled images of `LabelledData`, nothing else.

    With a label index it is the lower baseline of the semi-supervised methods; with `data.oracle_labels`, which takes
    every label of the data set, the upper one.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        view: of the images.
        optimizer: how the weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        ema_decay: of the moving average that is evaluated.
        init_from: checkpoint of an earlier stage whose encoder to start from.
    """

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        backbone: str = "wrn_28_2",
        pretrained: bool = False,
        ema_decay: float = 0.999,
        init_from: str | None = None,
    ) -> None:
        super().__init__(
            image, optimizer, backbone=backbone, pretrained=pretrained, ema_decay=ema_decay, init_from=init_from
        )
        self.view = view

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch."""
        logits = full_precision(self.model(self.view(batch.images, batch.key.fold("view"))))
        loss = F.cross_entropy(logits, batch.labels)
        self.log_training(loss=loss)
        return loss
