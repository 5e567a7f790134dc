"""FixMatch with EMAN: Exponential Moving Average Normalization (Cai et al., 2021)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, within
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.ema import EMA
from usl_lightning.models.guesses import fixmatch_loss
from usl_lightning.semisup.semisup_module import SemiSupervisedModule


class EMANFixMatch(SemiSupervisedModule):
    """FixMatch whose pseudo-labels are a teacher's: the moving average of weights and of batch norm's statistics.

    The teacher normalises with the statistics that it has averaged, never with those of a batch, so what it says of an
    image does not depend on the others. It is also what is evaluated.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        threshold: τ, the least probability of a pseudo-label; published: 0.95 on CIFAR, 0.7 on ImageNet.
        unlabelled_weight: λ_u, the weight of the unlabelled loss; published: 1 on CIFAR, 10 on ImageNet.
        ema_decay: of the teacher.
        init_from: checkpoint of an earlier stage whose encoder to start from.
        prior: prior pseudo-labels that guide the guesses at first: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"threshold": within(0, 1), "unlabelled_weight": at_least(0)}

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        backbone: str = "wrn_28_2",
        pretrained: bool = False,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        ema_decay: float = 0.999,
        init_from: str | None = None,
        **prior: Any,
    ) -> None:
        super().__init__(image, backbone, pretrained, optimizer, ema_decay=ema_decay, init_from=init_from, **prior)
        self.ema = EMA(self.model, ema_decay, average_buffers=True)
        self.weak, self.strong = weak, strong
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (§3.3)."""
        labelled, unlabelled = batch
        weak = self.weak(unlabelled.images, unlabelled.key.fold("weak"))
        with torch.no_grad():
            teacher = self.guided(full_precision(self.ema.module(weak)), unlabelled.indices)
        x, strong = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
        )
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised, mask = fixmatch_loss(teacher, strong, threshold=self.threshold)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(teacher, mask)
        return loss
