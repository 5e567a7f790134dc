"""UDA: Unsupervised Data Augmentation for Consistency Training (Xie et al., 2020)."""

import math
from typing import ClassVar, Literal, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, within
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule

Annealing = Literal["none", "log", "linear", "exp"]


def uda_loss(
    weak_logits: Tensor, strong_logits: Tensor, *, temperature: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the strong view against the sharpened prediction of the weak one, if that is confident (Eq. 1).

    The divergence of the published code has the same gradient: it is less by the entropy of the target.

    Args:
        weak_logits: [n, classes]; no gradient flows into them.
        strong_logits: [n, classes].
        temperature: τ of the target softmax(weak / τ), above 0.
        threshold: β, in [0, 1]; a target counts if the largest probability, before sharpening, is at least that.

    Returns:
        The loss, averaged over all n (those below the threshold count as 0), and the mask, bool [n].
    """
    weak_logits = weak_logits.detach()
    mask = weak_logits.softmax(1).max(1).values >= threshold
    losses = F.cross_entropy(strong_logits, (weak_logits / temperature).softmax(1), reduction="none")
    return (losses * mask).mean(), mask


def annealing_threshold(step: int, max_steps: int, classes: int, annealing: Annealing) -> float:
    """η_t = α_t·(1 − 1/K) + 1/K: labelled images that are predicted as surely as that do not count yet.

    Args:
        step: t, from 0.
        max_steps: T.
        classes: K.
        annealing: α_t is t/T (linear), 1 − exp(−5t/T) (log), exp(5(t/T − 1)) (exp); none: η is above 1, all count.
    """
    if annealing == "none":
        return math.inf
    t = min(1.0, step / max(1, max_steps))
    share = {"linear": t, "log": 1 - math.exp(-5 * t), "exp": math.exp(5 * (t - 1))}[annealing]
    return share * (1 - 1 / classes) + 1 / classes


def annealed_cross_entropy(logits: Tensor, labels: Tensor, *, threshold: float) -> Tensor:
    """Cross-entropy of the labelled images whose class has a probability below η, a mean over those; 0 if none.

    Args:
        logits: [b, classes].
        labels: int64 [b].
        threshold: η.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    counted = ((-losses.detach()).exp() < threshold).to(losses.dtype)
    return (losses * counted).sum() / counted.sum().clamp_min(1)


class UDA(SemiSupervisedModule):
    """Strong views are to be predicted as the weak one is, more sharply, where that is confident.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose prediction is the target.
        strong: view of the unlabelled images that learn it.
        optimizer: how the weights are updated.
        temperature: τ of the targets; below 1 it sharpens them.
        threshold: β, the least probability of a target; published: 0.8 on CIFAR-10 and SVHN, 0.5 on ImageNet.
        unlabelled_weight: λ, the weight of the unlabelled loss.
        annealing: of the training signal: how the probability from which a labelled image does not count rises to 1.
        joint_pass: one forward pass over all views; see `FixMatch`.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "temperature": above(0),
        "threshold": within(0, 1),
        "unlabelled_weight": at_least(0),
    }

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        temperature: float = 0.4,
        threshold: float = 0.8,
        unlabelled_weight: float = 1.0,
        annealing: Annealing = "none",
        joint_pass: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong, self.joint_pass = weak, strong, joint_pass
        self.temperature, self.threshold = temperature, threshold
        self.unlabelled_weight, self.annealing = unlabelled_weight, annealing

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Eq. 1)."""
        labelled, unlabelled = batch
        x, weak, strong = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
            joint=self.joint_pass,
        )
        weak = self.guided(weak, unlabelled.indices)
        supervised = annealed_cross_entropy(gather(x), gather(labelled.labels), threshold=self._annealing_threshold())
        unsupervised, mask = uda_loss(weak, strong, temperature=self.temperature, threshold=self.threshold)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(weak, mask)
        return loss

    def _annealing_threshold(self) -> float:
        last = 0 if self.annealing == "none" else self.trainer.max_steps
        return annealing_threshold(self.global_step, last, self.image.num_classes, self.annealing)
