"""Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks (Lee, 2013)."""

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, within
from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def pseudo_label_loss(logits: Tensor, guess: Tensor | None = None, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a prediction against its own largest entry, which is a constant; or that of another guess.

    Args:
        logits: [n, classes].
        guess: logits [n, classes] that a prior guides; None: those above. No gradient flows into them.
        threshold: τ, in [0, 1]; a pseudo-label counts if its probability is at least that. 0, as in the paper: all do.

    Returns:
        The loss, averaged over all n (those below the threshold count as 0), and the mask, bool [n].
    """
    confidence, pseudo_labels = (logits if guess is None else guess).detach().softmax(1).max(1)
    mask = confidence >= threshold
    losses = F.cross_entropy(logits, pseudo_labels, reduction="none")
    return (losses * mask).mean(), mask


class PseudoLabel(SemiSupervisedModule):
    """Confident predictions become more confident.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of all images.
        optimizer: how the weights are updated.
        threshold: τ, the least probability of a pseudo-label; the paper has none (0), later comparisons 0.95.
        unlabelled_weight: α_f, the final weight of the unlabelled loss.
        ramp: share of the training over which that weight rises linearly from 0.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"threshold": within(0, 1), "unlabelled_weight": at_least(0), "ramp": within(0, 1)}

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        optimizer: Optimization,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        ramp: float = 0.4,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.threshold = weak, threshold
        self.unlabelled_weight, self.ramp = unlabelled_weight, ramp

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch."""
        labelled, unlabelled = batch
        x, u = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak")),
        )
        guess = self.guided(u, unlabelled.indices)
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised, mask = pseudo_label_loss(u, guess, threshold=self.threshold)
        weight = self.unlabelled_weight * ramp_up(self.global_step, self.steps_of(self.ramp))
        loss = supervised + weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(guess, mask)
        return loss
