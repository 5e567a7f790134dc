"""ICT: Interpolation Consistency Training for Semi-Supervised Learning (Verma et al., 2019)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, within
from usl_lightning.compute.optim import Optimization, sigmoid_ramp_up
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.models.guesses import squared_difference
from usl_lightning.models.mixing import mix, mix_weights, partners_of
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def ict_loss(mixed_logits: Tensor, mixed_predictions: Tensor) -> Tensor:
    """The squared difference between the prediction of a mixed image and the mixed predictions (Alg. 1, L_US).

    Args:
        mixed_logits: of λu + (1 − λ)u', [n, classes].
        mixed_predictions: λp + (1 − λ)p' of the teacher, [n, classes], each row a distribution; no gradient.

    Returns:
        A mean over images and classes.
    """
    return squared_difference(mixed_logits, mixed_predictions)


class ICT(SemiSupervisedModule):
    """A mixture of two images is to be predicted as the mixture of what the mean teacher predicts of each.

    The labelled images are mixed too, with their labels, as in the published code.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of all images.
        optimizer: how the weights are updated.
        alpha: α of the mixing weights' Beta(α, α); published: 1 on CIFAR-10, 0.1 on SVHN.
        unlabelled_weight: w, the final weight of the unlabelled loss.
        ramp: share of the training over which that weight rises along a sigmoid.
        network: the network, whose moving average is the teacher, its start, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"alpha": above(0), "unlabelled_weight": at_least(0), "ramp": within(0, 1)}

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        optimizer: Optimization,
        alpha: float = 1.0,
        unlabelled_weight: float = 100.0,
        ramp: float = 0.25,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.alpha = weak, alpha
        self.unlabelled_weight, self.ramp = unlabelled_weight, ramp

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        labelled, unlabelled = batch
        x = self.weak(labelled.images, labelled.key.fold("weak"))
        u = self.weak(unlabelled.images, unlabelled.key.fold("weak"))
        predictions = self.guided(self.teacher_logits(u), unlabelled.indices).softmax(1)
        labels = F.one_hot(labelled.labels, self.image.num_classes).to(predictions.dtype)

        x, labels = self._mixed(labelled, x, labels)
        u, targets = self._mixed(unlabelled, u, predictions)
        mixed_x, mixed_u = self.logits(x, u)
        supervised = F.cross_entropy(mixed_x, labels)
        unsupervised = ict_loss(mixed_u, targets)
        weight = self.unlabelled_weight * sigmoid_ramp_up(self.global_step, self.steps_of(self.ramp))
        loss = supervised + weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(predictions, torch.ones_like(predictions[:, 0]))
        return loss

    def _mixed(self, batch: Batch, views: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each view and target mixed with those of another image of the global batch."""
        key = batch.key.fold("mix")
        weights = mix_weights(key, alpha=self.alpha)
        mixed_views, mixed_targets = (mix(own, partners_of([own], [key]), weights) for own in (views, targets))
        return mixed_views, mixed_targets
