"""MixMatch: A Holistic Approach to Semi-Supervised Learning (Berthelot et al., 2019)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.batch_norm import kept_statistics
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import sharpened, squared_difference
from usl_lightning.models.mixing import mix, mix_weights, partners_of
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def guessed_labels(logits: Tensor, *, temperature: float) -> Tensor:
    """The sharpened mean prediction over an image's views (Eqs. 6 and 7).

    Args:
        logits: [views, n, classes].
        temperature: T, above 0; 0.5 as published, 1 leaves the mean as it is.

    Returns:
        Distributions [n, classes]: p̄^(1/T), normalised. No gradient.
    """
    return sharpened(logits.detach().softmax(-1).mean(0), temperature=temperature)


def mixmatch_losses(
    labelled_logits: Tensor, labels: Tensor, unlabelled_logits: Tensor, guesses: Tensor
) -> tuple[Tensor, Tensor]:
    """The two terms of the loss, unweighted (Eqs. 3 and 4).

    Args:
        labelled_logits: [b, classes], of mixed images that are mostly labelled ones.
        labels: their mixed label distributions [b, classes].
        unlabelled_logits: [n, classes], of mixed images that are mostly unlabelled ones.
        guesses: their mixed label distributions [n, classes].

    Returns:
        The cross-entropy, a mean over b, and the squared difference of probabilities, a mean over n and classes.
    """
    return F.cross_entropy(labelled_logits, labels), squared_difference(unlabelled_logits, guesses)


class MixMatch(SemiSupervisedModule):
    """Guessed labels of several weak views, mixed with the labelled images and with each other.

    As in the published code: each sample has a mixing weight of its own, the partners come from the whole global batch,
    and the guesses, made by the online network in training mode with a pass for each view, leave the running statistics
    of batch norm alone. Not as there: the mixed images take one forward pass (there one for each group, after the
    groups have exchanged parts so that each has both kinds), so batch norm sees all of them at once, and so do its
    running statistics.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of all images.
        optimizer: how the weights are updated.
        views: K, weak views of an unlabelled image.
        temperature: T of the sharpened guess, above 0.
        alpha: α of the mixing weights' Beta(α, α), above 0.
        unlabelled_weight: λ_u, the final weight of the unlabelled loss; 75 on CIFAR-10, 150 on CIFAR-100.
        ramp_steps: optimizer steps over which that weight rises linearly from 0; published: 2^20 images, 16,384 steps.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "views": whole(1),
        "temperature": above(0),
        "alpha": above(0),
        "unlabelled_weight": at_least(0),
        "ramp_steps": whole(0),
    }

    revision: int = 2

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        optimizer: Optimization,
        views: int = 2,
        temperature: float = 0.5,
        alpha: float = 0.75,
        unlabelled_weight: float = 75.0,
        ramp_steps: int = 16384,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak = weak
        self.views, self.temperature, self.alpha = views, temperature, alpha
        self.unlabelled_weight, self.ramp_steps = unlabelled_weight, ramp_steps

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        labelled, unlabelled = batch
        x = self.weak(labelled.images, labelled.key.fold("weak"))
        u = [self.weak(unlabelled.images, unlabelled.key.fold("weak", k)) for k in range(self.views)]
        guess = self._guess(u, unlabelled.indices)
        labels = F.one_hot(labelled.labels, self.image.num_classes).to(guess.dtype)

        keys = [labelled.key.fold("mix"), *(unlabelled.key.fold("mix", k) for k in range(self.views))]
        weights = torch.cat([mix_weights(key, alpha=self.alpha) for key in keys])
        images, targets = (
            mix(torch.cat(groups), partners_of(groups, keys), weights)
            for groups in ([x, *u], [labels, *[guess] * self.views])
        )
        logits, size = full_precision(self.model(images)), len(x)
        supervised, unsupervised = mixmatch_losses(logits[:size], targets[:size], logits[size:], targets[size:])
        loss = supervised + self.unlabelled_weight * ramp_up(self.global_step, self.ramp_steps) * unsupervised
        self.log_training(
            loss=loss,
            supervised_loss=supervised,
            unsupervised_loss=unsupervised,
            guess_confidence=guess.max(1).values.mean(),
        )
        self.log_guesses(guess, torch.ones_like(guess[:, 0]))
        return loss

    @torch.no_grad()
    def _guess(self, views: list[Tensor], indices: Tensor) -> Tensor:
        """Label distributions [n, classes] of unlabelled images int64 [n] from their views, each [n, c, h, w].

        Each view has a pass of its own, so that batch norm normalises it apart from the others.
        """
        with kept_statistics(self.model):
            logits = torch.stack([self.guided(full_precision(self.model(view)), indices) for view in views])
        return guessed_labels(logits, temperature=self.temperature)
