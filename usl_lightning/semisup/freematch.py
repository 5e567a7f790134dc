"""FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning (Wang et al., 2023)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import class_shares, moving_average, thresholded_loss
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def updated_averages(
    probs: Tensor, confidence: Tensor, mean_probs: Tensor, histogram: Tensor, *, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The three moving averages after a batch: τ (Eq. 5), p̃ (Eq. 6) and h̃ (Eq. 11).

    Args:
        probs: [n, c], predictions of weak views, of the global batch.
        confidence: [], the largest probability of late.
        mean_probs: [c], the prediction of late.
        histogram: [c], the shares of the pseudo-labels of late.
        momentum: λ, the weight of the old values, in [0, 1).
    """
    largest, labels = probs.max(1)
    shares = class_shares(labels, torch.full_like(largest, 1 / len(probs)), probs.shape[1])
    olds_and_news = ((confidence, largest.mean()), (mean_probs, probs.mean(0)), (histogram, shares))
    first, second, third = (moving_average(old, new, momentum=momentum) for old, new in olds_and_news)
    return first, second, third


def self_adaptive_thresholds(confidence: Tensor, mean_probs: Tensor) -> Tensor:
    """τ·p̃_c / max p̃ (Eq. 7), [c]: of all classes lower as long as the network is unsure, of rare guesses lower still.

    Args:
        confidence: τ, [].
        mean_probs: p̃, [c].
    """
    return confidence * mean_probs / mean_probs.max()


def fairness_loss(strong_logits: Tensor, mask: Tensor, mean_probs: Tensor, histogram: Tensor) -> Tensor:
    """Σ N(p̃/h̃)·log N(p̄/h̄): classes are to be predicted more alike than they are guessed (Eqs. 9, 10 and 12).

    N scales to the sum 1. p̄ is the mean prediction of the strong views that count, h̄ the histogram of their largest
    entries. Classes that none of them is taken for are left out (1/0 is 0): they have no gradient in the published
    code either, which adds 10⁻¹² in the logarithm.

    Args:
        strong_logits: [n, c].
        mask: bool [n], which of them count.
        mean_probs: p̃, [c].
        histogram: h̃, [c].

    Returns:
        The loss, a scalar, at most 0; 0 if none counts.
    """
    probs, counted = strong_logits.softmax(1), mask.to(strong_logits.dtype)
    counts = class_shares(probs.argmax(1), counted, probs.shape[1])
    target = _scaled(mean_probs, histogram).to(probs.dtype)
    predicted = _scaled((counted[:, None] * probs).sum(0), counts)
    tiny = torch.finfo(probs.dtype).tiny
    return (target * torch.where(counts > 0, predicted.clamp_min(tiny).log(), 0)).sum()


def _scaled(values: Tensor, divisors: Tensor) -> Tensor:
    """values / divisors, 0 where that is by 0, scaled to the sum 1."""
    ratios = torch.where(divisors > 0, values / torch.where(divisors > 0, divisors, 1), 0)
    return ratios / ratios.sum().clamp_min(torch.finfo(ratios.dtype).tiny)


class FreeMatch(SemiSupervisedModule):
    """FixMatch with thresholds that follow the network's own confidence, and a loss against unfair predictions.

    As in the published code, the moving averages of a step take in its batch before they are used.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        momentum: λ of the moving averages of confidence, predictions and pseudo-labels.
        unlabelled_weight: w_u, the weight of the unlabelled loss.
        fairness_weight: w_f, the weight of the fairness loss; published: 0.001 on CIFAR, SVHN and STL-10, 0.01 else.
        joint_pass: one forward pass over all views, as published; see `FixMatch`.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "momentum": at_least(0, below=1),
        "unlabelled_weight": at_least(0),
        "fairness_weight": at_least(0),
    }

    confidence: Tensor
    mean_probs: Tensor
    histogram: Tensor

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        momentum: float = 0.999,
        unlabelled_weight: float = 1.0,
        fairness_weight: float = 0.001,
        joint_pass: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong, self.momentum, self.joint_pass = weak, strong, momentum, joint_pass
        self.unlabelled_weight, self.fairness_weight = unlabelled_weight, fairness_weight
        uniform = torch.full((image.num_classes,), 1 / image.num_classes)
        self.register_buffer("confidence", uniform[0].clone())
        self.register_buffer("mean_probs", uniform.clone())
        self.register_buffer("histogram", uniform.clone())

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
        thresholds = self.thresholds(weak.softmax(1))
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised, mask = thresholded_loss(weak, strong, thresholds)
        fairness = fairness_loss(strong, mask, self.mean_probs, self.histogram)
        loss = supervised + self.unlabelled_weight * unsupervised + self.fairness_weight * fairness
        self.log_guesses(weak, mask)
        self.log_classes("threshold", thresholds)
        self.log_training(
            loss=loss,
            supervised_loss=supervised,
            unsupervised_loss=unsupervised,
            fairness_loss=fairness,
            global_threshold=self.confidence,
        )
        return loss

    @torch.no_grad()
    def thresholds(self, probs: Tensor) -> Tensor:
        """The thresholds [c], after the moving averages took in the predictions [n, c] of the global batch."""
        averages = (self.confidence, self.mean_probs, self.histogram)
        for own, new in zip(averages, updated_averages(probs, *averages, momentum=self.momentum), strict=True):
            own.copy_(new)
        return self_adaptive_thresholds(self.confidence, self.mean_probs)
