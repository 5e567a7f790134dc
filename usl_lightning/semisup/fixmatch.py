"""FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence (Sohn et al., 2020)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, within
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import fixmatch_loss
from usl_lightning.semisup.semisup_module import SemiSupervisedModule


class FixMatch(SemiSupervisedModule):
    """Confident predictions on weak views are the labels of strong views.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        threshold: τ, the least probability of a pseudo-label.
        unlabelled_weight: λ_u, the weight of the unlabelled loss.
        joint_pass: one forward pass over all views, as published. False: the pseudo-labels come from a training-mode
            pass of their own without gradient, which saves about a third of a step; batch norm then sees the weak
            views apart from the others.
        ema_decay: of the moving average that is evaluated.
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
        joint_pass: bool = True,
        ema_decay: float = 0.999,
        init_from: str | None = None,
        **prior: Any,
    ) -> None:
        super().__init__(image, backbone, pretrained, optimizer, ema_decay=ema_decay, init_from=init_from, **prior)
        self.weak, self.strong = weak, strong
        self.threshold, self.unlabelled_weight, self.joint_pass = threshold, unlabelled_weight, joint_pass

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        labelled, unlabelled = batch
        x, weak, strong = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
            joint=self.joint_pass,
        )
        weak = self.guided(weak, unlabelled.indices)
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised, mask = fixmatch_loss(weak, strong, threshold=self.threshold)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(weak, mask)
        return loss
