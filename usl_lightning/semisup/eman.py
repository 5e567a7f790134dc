"""FixMatch with EMAN: Exponential Moving Average Normalization (Cai et al., 2021)."""

from typing import Unpack

import torch
from torch import Tensor, nn

from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.ema import EMA
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.semisup.semisup_module import NetworkOptions


class EMANFixMatch(FixMatch):
    """FixMatch whose pseudo-labels are a teacher's: the moving average of weights and of batch norm's statistics.

    The teacher normalises with the statistics that it has averaged, never with those of a batch, so what it says of an
    image does not depend on the others. It is also what is evaluated.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        threshold: τ, the least probability of a pseudo-label; published: 0.95 on CIFAR, 0.7 on ImageNet.
        unlabelled_weight: λ_u, the weight of the unlabelled loss; published: 1 on CIFAR, 10 on ImageNet.
        network: the network, whose moving average is the teacher, its start, and a prior: see `SemiSupervisedModule`.
    """

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, weak, strong, optimizer, threshold, unlabelled_weight, joint_pass=True, **network)
        self.ema = EMA(self.model, self.ema.decay, average_buffers=True)

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
        return self.loss(x, labelled.labels, teacher, strong)
