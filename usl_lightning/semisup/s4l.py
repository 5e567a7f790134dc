"""S4L: Self-Supervised Semi-Supervised Learning (Zhai et al., 2019), with rotations."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.turning import TURNS, check_square, turned_views, turning_loss
from usl_lightning.semisup.semisup_module import SemiSupervisedModule


def s4l_losses(logits: Tensor, labels: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """The class of every turn of the labelled images, and by how much each of all images is turned (Eqs. 1 and 3).

    Args:
        logits: of the classes, [4b, classes]: all labelled images as they are, then all turned by 90 degrees, ….
        labels: int64 [b].
        turns: logits of the turns, [4n, 4], in the same order, of n images.

    Returns:
        Two means.
    """
    return F.cross_entropy(logits, labels.repeat(TURNS)), turning_loss(turns)


class S4L(SemiSupervisedModule):
    """A classifier that also has to tell by how much its images, labelled or not, were turned.

    Of no use where nothing is upright. The paper's later steps (pseudo-labels of that network, fine-tuning) are stages
    of their own here: `Distill`, `FineTune`.

    Args:
        image: channels, size, statistics and classes of the images, which must be square; the command line takes it
            from the data.
        weak: draws a view of each turned image.
        optimizer: how the weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        rotation_weight: w, the weight of the loss of the turns; published: 1.
        ema_decay: of the moving average that is evaluated.
        init_from: checkpoint of an earlier stage whose encoder to start from.

    Raises:
        UslError: images that are not square.
    """

    ranges: ClassVar[Ranges] = {"rotation_weight": at_least(0)}

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        optimizer: Optimization,
        backbone: str = "wrn_28_2",
        pretrained: bool = False,
        rotation_weight: float = 1.0,
        ema_decay: float = 0.999,
        init_from: str | None = None,
    ) -> None:
        check_square(image, "S4L")
        super().__init__(
            image, optimizer, backbone=backbone, pretrained=pretrained, ema_decay=ema_decay, init_from=init_from
        )
        self.weak, self.rotation_weight = weak, rotation_weight
        self.rotation = nn.Linear(self.model.encoder.feature_dim, TURNS)

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of four times the global batch (§3.1)."""
        labelled, unlabelled = batch
        views = [turned_views(part.images, self.weak, part.key.fold("weak")) for part in (labelled, unlabelled)]
        features = full_precision(self.model.encoder(torch.cat(views)))
        first, rest = torch.split(features, [TURNS * len(labelled), TURNS * len(unlabelled)])
        both = torch.cat([part.reshape(TURNS, -1, part.shape[1]) for part in (first, rest)], 1).flatten(0, 1)
        logits, turns = full_precision(self.model.head(first)), full_precision(self.rotation(both))
        supervised, rotation = s4l_losses(logits, labelled.labels, turns)
        loss = supervised + self.rotation_weight * rotation
        self.log_training(loss=loss, supervised_loss=supervised, rotation_loss=rotation)
        return loss
