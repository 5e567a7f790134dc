"""FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence (Sohn et al., 2020)."""

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, within
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import fixmatch_loss
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


class FixMatch(SemiSupervisedModule):
    """Confident predictions on weak views are the labels of strong views.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        threshold: τ, the least probability of a pseudo-label.
        unlabelled_weight: λ_u, the weight of the unlabelled loss.
        joint_pass: one forward pass over all views, as published. False: the pseudo-labels come from a training-mode
            pass of their own without gradient, which saves about a third of a step; batch norm then sees the weak
            views apart from the others.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"threshold": within(0, 1), "unlabelled_weight": at_least(0)}

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        joint_pass: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
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
        return self.loss(x, labelled.labels, self.guided(weak, unlabelled.indices), strong)

    def loss(self, x: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
        """ℓ_s + λ_u·ℓ_u (Eqs. 3 and 4), and what the logs hear of it.

        Args:
            x: logits [b, classes] of the labelled images.
            labels: int64 [b].
            weak: logits [n, classes] that the guesses are made of.
            strong: logits [n, classes] that learn them.
        """
        supervised = F.cross_entropy(x, labels)
        unsupervised, mask = fixmatch_loss(weak, strong, threshold=self.threshold)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(weak, mask)
        return loss
