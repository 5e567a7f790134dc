"""SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning (Chen et al., 2023)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import align, moving_average
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def updated_mean_probs(probs: Tensor, mean_probs: Tensor, *, momentum: float) -> Tensor:
    """The moving average of the mean prediction, [c]; the first batch counts as it is.

    Args:
        probs: [n, c], of the global batch.
        mean_probs: [c], of the steps before; zeros: there were none.
        momentum: m, the weight of the old values, in [0, 1).
    """
    new = probs.mean(0)
    return torch.where(mean_probs.sum() > 0, moving_average(mean_probs, new, momentum=momentum), new)


def updated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, *, momentum: float) -> tuple[Tensor, Tensor]:
    """The moving averages of mean and (unbiased) variance of the confidence: μ and σ² (§3.1).

    Args:
        confidence: [n], largest probabilities, of the global batch; of a single one the variance is 0.
        mean, variance: [], of the steps before.
        momentum: m, the weight of the old values, in [0, 1).
    """
    new_variance = confidence.var(correction=min(1, len(confidence) - 1))
    return (
        moving_average(mean, confidence.mean(), momentum=momentum),
        moving_average(variance, new_variance, momentum=momentum),
    )


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, *, sigmas: float) -> Tensor:
    """The weight of each pseudo-label: 1 from the mean confidence on, below it exp(−n²(μ − confidence)²/2σ²) (§3.1).

    Args:
        confidence: [n], largest probabilities.
        mean, variance: μ and σ², [].
        sigmas: n, above 0: the Gaussian's own deviation is σ/n. Published: 2.

    Returns:
        [n], in [0, 1].
    """
    below = (mean - confidence).clamp_min(0)
    return torch.exp(-(below**2) * sigmas**2 / (2 * variance.clamp_min(torch.finfo(variance.dtype).tiny)))


def softmatch_loss(weak_logits: Tensor, strong_logits: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of the strong view against the hard pseudo-label of the weak one, averaged over n.

    Args:
        weak_logits: [n, c]; their largest entries are the labels, without alignment; no gradient flows into them.
        strong_logits: [n, c].
        weights: λ(p), [n].
    """
    return (F.cross_entropy(strong_logits, weak_logits.argmax(1), reduction="none") * weights).mean()


class SoftMatch(SemiSupervisedModule):
    """FixMatch with weights instead of a threshold: all pseudo-labels teach, those of unusually low confidence less.

    As in the published code: confidence is that of the aligned prediction, the pseudo-label that of the prediction
    itself, and the moving averages of a step take in its batch before they are used.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        momentum: m of the moving averages of predictions and confidence.
        sigmas: n: deviations below the mean confidence at which a weight has fallen to exp(−n²/2).
        alignment: predictions are aligned with equal shares of the classes before they are weighted.
        unlabelled_weight: λ_u, the weight of the unlabelled loss.
        joint_pass: one forward pass over all views, as published; see `FixMatch`.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "momentum": at_least(0, below=1),
        "sigmas": above(0),
        "unlabelled_weight": at_least(0),
    }

    mean_probs: Tensor
    confidence_mean: Tensor
    confidence_variance: Tensor

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        momentum: float = 0.999,
        sigmas: float = 2.0,
        alignment: bool = True,
        unlabelled_weight: float = 1.0,
        joint_pass: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong, self.joint_pass = weak, strong, joint_pass
        self.momentum, self.sigmas, self.alignment = momentum, sigmas, alignment
        self.unlabelled_weight = unlabelled_weight
        self.register_buffer("mean_probs", torch.zeros(image.num_classes))
        self.register_buffer("confidence_mean", torch.tensor(1 / image.num_classes))
        self.register_buffer("confidence_variance", torch.tensor(1.0))

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        labelled, unlabelled = batch
        x, weak, strong = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
            joint=self.joint_pass,
        )
        weak, strong = gather(self.guided(weak, unlabelled.indices)), gather(strong)
        weights = self.weights(weak.softmax(1))
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised = softmatch_loss(weak, strong, weights)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_guesses(weak, weights)
        self.log_training(
            loss=loss,
            supervised_loss=supervised,
            unsupervised_loss=unsupervised,
            confidence_mean=self.confidence_mean,
            confidence_variance=self.confidence_variance,
        )
        return loss

    @torch.no_grad()
    def weights(self, probs: Tensor) -> Tensor:
        """Weights [n], after the moving averages took in the predictions [n, c] of the global batch."""
        self.mean_probs.copy_(updated_mean_probs(probs, self.mean_probs, momentum=self.momentum))
        aligned = align(probs, self.mean_probs.to(probs.dtype)) if self.alignment else probs
        confidence = aligned.max(1).values
        mean, variance = updated_gaussian(
            confidence, self.confidence_mean, self.confidence_variance, momentum=self.momentum
        )
        self.confidence_mean.copy_(mean)
        self.confidence_variance.copy_(variance)
        return truncated_gaussian(confidence, mean, variance, sigmas=self.sigmas)
