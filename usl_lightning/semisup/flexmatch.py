"""FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling (Zhang et al., 2021)."""

from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, within
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import thresholded_loss
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def adaptive_thresholds(counts: Tensor, unused: int | Tensor, *, threshold: float, warmup: bool = True) -> Tensor:
    """The threshold of each class, lower for those that are learned less (Eqs. 7, 11 and 12, convex map).

    τ·β/(2 − β) with β = counts / max(counts); with `warmup`, the unused images join the maximum.

    Args:
        counts: [c], images whose pseudo-label is that class; integers or floats, at least 0.
        unused: images that have none yet, a number or a tensor [].
        threshold: τ, in [0, 1].
        warmup: keep all thresholds low as long as unused images dominate.

    Returns:
        [c], in [0, τ], in the dtype of `counts` if it is floating, else float32. All 0 if there is nothing to count.
    """
    counts = counts if counts.is_floating_point() else counts.float()
    most = counts.max()
    if warmup:
        most = torch.maximum(most, torch.as_tensor(unused, dtype=most.dtype, device=most.device))
    beta = counts / torch.where(most > 0, most, 1)
    return threshold * beta / (2 - beta)


def confident_labels(weak_logits: Tensor, *, threshold: float) -> Tensor:
    """Pseudo-labels int64 [n] of logits [n, c]; -1 where the probability is below the fixed τ."""
    confidence, pseudo_labels = weak_logits.detach().softmax(1).max(1)
    return torch.where(confidence >= threshold, pseudo_labels, -1)


def record_labels_(record: Tensor, counts: Tensor, indices: Tensor, labels: Tensor) -> None:
    """Write the confident pseudo-labels of a batch down and bring the counts up to date, in place, in O(n log n).

    An image keeps its label until it is confidently given another. If one is in the batch more than once, its last
    confident label counts, as if the batch were gone through in order.

    Args:
        record: integers [N], the label of each image of the data set; -1 is unused.
        counts: int64 [c + 1], images with each label; the last entry is for the unused.
        indices: int64 [n], the images.
        labels: int64 [n], what they are now taken for; -1 leaves the record as it is.
    """
    # All places of one image lie together, its last confident label at their end, and all write that same label.
    order = torch.argsort(2 * indices + (labels >= 0), stable=True)
    indices, labels = indices[order], labels[order]
    last = torch.searchsorted(indices, indices, right=True) - 1
    old = record[indices].long()
    new = torch.where(labels[last] >= 0, labels[last], old)
    record.scatter_(0, indices, new.to(record.dtype))
    once = (last == torch.arange(len(last), device=last.device)).to(counts.dtype)
    unused = len(counts) - 1
    counts.scatter_add_(0, torch.where(old >= 0, old, unused), -once)
    counts.scatter_add_(0, torch.where(new >= 0, new, unused), once)


class FlexMatch(SemiSupervisedModule):
    """FixMatch with a threshold for each class, which rises as the class is learned.

    As in Algorithm 1 and the published code, the thresholds of a step come from the records of the steps before, and
    the records from confidence at the fixed τ. As in that code, τ itself passes.

    Args:
        image: channels, size, statistics, classes and number of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the weights are updated.
        threshold: τ, which no class's threshold exceeds.
        warmup: thresholds stay low as long as most images have not had a confident pseudo-label.
        unlabelled_weight: λ_u, the weight of the unlabelled loss.
        joint_pass: one forward pass over all views, as published; see `FixMatch`.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"threshold": within(0, 1), "unlabelled_weight": at_least(0)}

    record: Tensor
    counts: Tensor

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        threshold: float = 0.95,
        warmup: bool = True,
        unlabelled_weight: float = 1.0,
        joint_pass: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong = weak, strong
        self.threshold, self.warmup = threshold, warmup
        self.unlabelled_weight, self.joint_pass = unlabelled_weight, joint_pass
        # int32, because NCCL, which keeps the buffers of all processes equal, has no int16.
        self.register_buffer("record", torch.full((image.count,), -1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(image.num_classes + 1, dtype=torch.long))

    def setup(self, stage: str) -> None:
        """Count the unlabelled set, of which nothing is used yet; a checkpoint being resumed wins."""
        super().setup(stage)
        if stage == "fit":
            self.counts[-1] = self.trainer.datamodule.unlabelled_count  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take records of any length: the images that are classified need not be those that were trained on."""
        super().on_load_checkpoint(checkpoint)
        self.record = torch.empty_like(checkpoint["state_dict"]["record"], device=self.record.device)

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
        counts, unused = self.counts[:-1], self.counts[-1]
        thresholds = adaptive_thresholds(counts, unused, threshold=self.threshold, warmup=self.warmup)
        guesses = torch.stack([unlabelled.indices, confident_labels(weak, threshold=self.threshold)], dim=1)
        record_labels_(self.record, self.counts, *gather(guesses).unbind(1))

        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised, mask = thresholded_loss(weak, strong, thresholds)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_guesses(weak, mask)
        self.log_classes("threshold", thresholds)
        self.log_training(
            loss=loss,
            supervised_loss=supervised,
            unsupervised_loss=unsupervised,
            unused=self.counts[-1] / self.counts.sum(),
            lowest_threshold=thresholds.min(),
            highest_threshold=thresholds.max(),
        )
        return loss
