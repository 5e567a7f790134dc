"""BOSS: Building One-Shot Semi-Supervised Learning up to Fully Supervised Performance (Smith & Conovaloff, 2022)."""

from typing import ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, whole, within
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import class_shares
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule

Code = Literal["tensorflow", "pytorch"]


def balanced_thresholds(counts: Tensor, *, threshold: float, relaxation: float) -> Tensor:
    """τ_c = τ − Δ·(1 − n_c / max n), [c]: lower for classes that are rare among the guesses (balancings 1 and 4).

    Args:
        counts: n_c, [c], pseudo-labels of each class in the batch, whether they are confident or not.
        threshold: τ.
        relaxation: Δ.
    """
    return threshold - relaxation * (1 - counts / counts.max().clamp_min(1))


def balanced_weights(pseudo_labels: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Weights [n] in proportion to 1 / n_c, 0 where the mask is, that sum up to the number that it lets pass.

    Args:
        pseudo_labels: int64 [n].
        mask: bool [n], which of them count.
        counts: n_c, [c].
    """
    inverse = mask / counts[pseudo_labels].clamp_min(1)
    return inverse * mask.sum() / inverse.sum().clamp_min(torch.finfo(inverse.dtype).tiny)


def boss_weights(weak_logits: Tensor, *, balance: int, threshold: float, relaxation: float, code: Code) -> Tensor:
    """How much each pseudo-label counts, [n]: 0 where it is not confident enough.

    Args:
        weak_logits: [n, classes], of the global batch; no gradient flows into them.
        balance: 1: thresholds by class. 2: weights by class, by counts of all pseudo-labels. 3: weights, by counts of
            those that pass. 4: thresholds as in 1, with weights as in 3.
        threshold, relaxation: τ and Δ.
        code: whose balancing 4 is meant; PyTorch's has the thresholds alone.
    """
    probs = weak_logits.detach().softmax(1)
    (confidence, pseudo_labels), classes = probs.max(1), probs.shape[1]
    counts = class_shares(pseudo_labels, torch.ones_like(confidence), classes)
    relaxed = relaxation if balance in (1, 4) else 0.0
    thresholds = balanced_thresholds(counts, threshold=threshold, relaxation=relaxed)
    mask = confidence >= thresholds[pseudo_labels]
    if balance == 1 or (balance == 4 and code == "pytorch"):
        return mask.to(probs.dtype)
    if balance != 2:
        counts = class_shares(pseudo_labels, mask.to(probs.dtype), classes)
    return balanced_weights(pseudo_labels, mask, counts)


def boss_loss(weak_logits: Tensor, strong_logits: Tensor, weights: Tensor, *, code: Code) -> Tensor:
    """Weighted cross-entropy of the strong view against the hard pseudo-label of the weak one.

    Args:
        weak_logits: [n, classes]; no gradient flows into them.
        strong_logits: [n, classes].
        weights: [n]; 0 is left out.
        code: TensorFlow's is a mean over all n, as FixMatch's is; PyTorch's over those that are not left out.
    """
    losses = F.cross_entropy(strong_logits, weak_logits.argmax(1), reduction="none") * weights
    return losses.mean() if code == "tensorflow" else losses.sum() / (weights > 0).sum().clamp_min(1)


class BOSS(SemiSupervisedModule):
    """FixMatch, its pseudo-labels balanced between the classes by how often each is guessed in the batch.

    Its other parts are stages of a chain: the choice of one prototype a class, and a second training with the most
    confident predictions of the first as labels.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        balance: 1: rare classes have lower thresholds. 2: they have larger weights, by the pseudo-labels of the batch.
            3: the same by those that pass. 4: 1 and 3.
        threshold: τ, the least probability of a pseudo-label of the class that is guessed most.
        relaxation: Δ, by how much the threshold of a class that is hardly guessed is lower.
        code: the two published versions differ. `tensorflow`: balancing 4 has weights, and the loss is a mean over all
            unlabelled images. `pytorch`: balancing 4 is the thresholds alone, and the mean is over those that pass.
        unlabelled_weight: λ_u, the weight of the unlabelled loss.
        joint_pass: one forward pass over all views; see `FixMatch`.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "balance": whole(1, up_to=4),
        "threshold": within(0, 1),
        "relaxation": within(0, 1),
        "unlabelled_weight": at_least(0),
    }

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        balance: int = 4,
        threshold: float = 0.95,
        relaxation: float = 0.2,
        code: Code = "tensorflow",
        unlabelled_weight: float = 1.0,
        joint_pass: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong, self.joint_pass = weak, strong, joint_pass
        self.balance, self.threshold, self.relaxation, self.code = balance, threshold, relaxation, code
        self.unlabelled_weight = unlabelled_weight

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch."""
        labelled, unlabelled = batch
        x, weak, strong = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
            joint=self.joint_pass,
        )
        weak, strong = gather(self.guided(weak, unlabelled.indices)), gather(strong)
        weights = boss_weights(
            weak, balance=self.balance, threshold=self.threshold, relaxation=self.relaxation, code=self.code
        )
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised = boss_loss(weak, strong, weights, code=self.code)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(weak, weights > 0)
        return loss
