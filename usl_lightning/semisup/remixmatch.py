"""ReMixMatch: Distribution Alignment and Augmentation Anchoring (Berthelot et al., 2020)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole, within
from usl_lightning.compute.batch_norm import kept_statistics
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.models.guesses import Ring, align, class_shares, sharpened
from usl_lightning.models.mixing import mix, mix_weights, partners_of
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def guessed_labels(probs: Tensor, mean: Tensor, shares: Tensor, *, temperature: float) -> Tensor:
    """The prediction of the weak view, aligned with the shares of the classes, then sharpened (§3.1 and Alg. 1).

    Args:
        probs: [n, classes].
        mean: [classes], the mean prediction of late.
        shares: [classes], of the labelled images.
        temperature: T, above 0.

    Returns:
        Distributions [n, classes].
    """
    return sharpened(align(probs, mean, shares), temperature=temperature)


def rotated(images: Tensor, quarters: Tensor) -> Tensor:
    """Square images [n, c, s, s], each turned by its number of quarters, int64 [n], 0 to 3."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)])
    return turned[quarters, torch.arange(len(images), device=images.device)]


class ReMixMatch(SemiSupervisedModule):
    """MixMatch whose guesses come from a weak view, are aligned, and teach several strong ones; and rotations.

    The mixed images, the first strong view and the turned ones take one forward pass, so batch norm sees all of them
    at once (see `MixMatch`). The guesses leave its running statistics alone.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of the unlabelled images whose label is guessed.
        strong: view of labelled images, and of the unlabelled ones that learn the guess.
        optimizer: how the weights are updated.
        strong_views: K, strong views of an unlabelled image; the paper's choice is 8, later comparisons have 2.
        temperature: T of the sharpened guess, above 0.
        alpha: α of the mixing weights' Beta(α, α), above 0.
        unlabelled_weight: λ_U, the final weight of the loss of the mixed unlabelled images.
        strong_weight: λ_Û₁, the final weight of the loss of the first strong view, which is not mixed.
        rotation_weight: λ_r, the weight of the loss by which turned images tell by how much; 0 for images that look
            alike turned.
        ramp: share of the training over which the first two of these weights rise linearly from 0; published: 1/64.
        aligned_batches: of so many batches the mean prediction is taken.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.

    Raises:
        UslError: images are to be turned that are not square.
    """

    ranges: ClassVar[Ranges] = {
        "strong_views": whole(1),
        "temperature": above(0),
        "alpha": above(0),
        "unlabelled_weight": at_least(0),
        "strong_weight": at_least(0),
        "rotation_weight": at_least(0),
        "ramp": within(0, 1),
        "aligned_batches": whole(1),
    }

    shares: Tensor

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        strong_views: int = 8,
        temperature: float = 0.5,
        alpha: float = 0.75,
        unlabelled_weight: float = 1.5,
        strong_weight: float = 0.5,
        rotation_weight: float = 0.5,
        ramp: float = 1 / 64,
        aligned_batches: int = 128,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        if rotation_weight and image.height != image.width:
            raise UslError(
                f"model.rotation_weight: images of {image.height}×{image.width} pixels cannot be turned by a quarter; "
                "expected square ones (data.image_size), or 0"
            )
        self.weak, self.strong, self.strong_views = weak, strong, strong_views
        self.temperature, self.alpha, self.ramp = temperature, alpha, ramp
        self.unlabelled_weight, self.strong_weight = unlabelled_weight, strong_weight
        self.rotation_weight = rotation_weight
        self.rotation = nn.Linear(self.model.encoder.feature_dim, 4) if rotation_weight else None
        self.mean_probs = Ring(aligned_batches, image.num_classes)
        self.register_buffer("shares", torch.full((image.num_classes,), 1 / image.num_classes))

    def setup(self, stage: str) -> None:
        """Count the labels of each class; a checkpoint being resumed is loaded after this and wins."""
        super().setup(stage)
        if stage == "fit":
            labels = torch.tensor(self.trainer.datamodule.index.for_training()[1])  # type: ignore[attr-defined]
            weights = torch.full(labels.shape, 1 / len(labels))
            self.shares.copy_(class_shares(labels, weights, len(self.shares)))

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        labelled, unlabelled = batch
        x = self.strong(labelled.images, labelled.key.fold("strong"))
        weak = self.weak(unlabelled.images, unlabelled.key.fold("weak"))
        strong = [self.strong(unlabelled.images, unlabelled.key.fold("strong", k)) for k in range(self.strong_views)]
        guess = self.guess(weak, unlabelled.indices)
        labels = F.one_hot(labelled.labels, self.image.num_classes).to(guess.dtype)

        u = [*strong, weak]
        keys = [labelled.key.fold("mix"), *(unlabelled.key.fold("mix", k) for k in range(len(u)))]
        weights = torch.cat([mix_weights(key, alpha=self.alpha) for key in keys])
        images, targets = (
            mix(torch.cat(groups), partners_of(groups, keys), weights)
            for groups in ([x, *u], [labels, *[guess] * len(u)])
        )
        logits, rotation = self._logits(images, strong[0], unlabelled.key.fold("turn"))
        mixed_x, mixed_u, first = torch.split(logits, [len(x), len(images) - len(x), len(weak)])
        supervised = F.cross_entropy(mixed_x, targets[: len(x)])
        unsupervised = F.cross_entropy(mixed_u, targets[len(x) :])
        unmixed = F.cross_entropy(first, guess)
        ramp = ramp_up(self.global_step, self.steps_of(self.ramp))
        loss = supervised + ramp * (self.unlabelled_weight * unsupervised + self.strong_weight * unmixed)
        loss = loss + self.rotation_weight * rotation
        self.log_training(
            loss=loss,
            supervised_loss=supervised,
            unsupervised_loss=unsupervised,
            strong_loss=unmixed,
            rotation_loss=rotation,
        )
        self.log_guesses(guess, torch.ones_like(guess[:, 0]))
        return loss

    @torch.no_grad()
    def guess(self, weak: Tensor, indices: Tensor) -> Tensor:
        """Label distributions [n, classes] of weak views of images int64 [n]; their mean joins the history first."""
        with kept_statistics(self.model):
            probs = self.guided(full_precision(self.model(weak)), indices).softmax(1)
        self.mean_probs.write(gather(probs).mean(0, keepdim=True))
        mean, shares = self.mean_probs.mean().to(probs.dtype), self.shares.to(probs.dtype)
        return guessed_labels(probs, mean, shares, temperature=self.temperature)

    def _logits(self, mixed: Tensor, strong: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Logits of mixed and strong views, one after the other, and the loss of telling by how much those turn."""
        if self.rotation is None:
            logits = full_precision(self.model(torch.cat([mixed, strong])))
            return logits, logits.new_zeros(())
        quarters = key.integers(1, 4)[:, 0]
        features = self.model.encoder(torch.cat([mixed, strong, rotated(strong, quarters)]))
        logits = full_precision(self.model.head(features[: -len(strong)]))
        turns = full_precision(self.rotation(features[-len(strong) :]))
        return logits, F.cross_entropy(turns, quarters)
