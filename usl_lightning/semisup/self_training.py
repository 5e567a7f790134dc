"""Self-training: the network labels all images from time to time, and learns what it was sure of (Yarowsky, 1995)."""

import logging
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, whole, within
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather_uneven
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.data.modules import SemiSupervisedData
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule

log = logging.getLogger(__name__)


def self_training_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy against the labels that there are.

    Args:
        logits: [n, classes].
        labels: integers [n]; -1 is none.

    Returns:
        The loss, averaged over all n (those without a label count as 0), and the mask, bool [n].
    """
    mask = labels >= 0
    return F.cross_entropy(logits, labels.long(), ignore_index=-1, reduction="sum") / len(labels), mask


def round_steps(max_steps: int, rounds: int) -> tuple[int, ...]:
    """The steps at whose beginning the images are labelled anew, evenly over the training; none at step 0."""
    return tuple(sorted({max(1, number * max_steps // (rounds + 1)) for number in range(1, rounds + 1)}))


class SelfTraining(SemiSupervisedModule):
    """Supervised at first; then the most confident labels of the network so far are learned too, on strong views.

    The network that labels is the moving average, of images as they are; a round takes all images whose probability is
    at least the threshold. The one that learns goes on with its weights, on noisy views as in Noisy Student (Xie et
    al., CVPR 2020).

    Args:
        image: channels, size, statistics, classes and number of the images; the command line takes it from the data.
        weak: view of labelled images.
        strong: view of the unlabelled images.
        optimizer: how the weights are updated.
        rounds: how often all images are labelled, evenly over the training.
        threshold: τ, the least probability of a label.
        unlabelled_weight: weight of their loss.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"rounds": whole(1), "threshold": within(0, 1), "unlabelled_weight": at_least(0)}

    labels: Tensor
    labelled_at: Tensor

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        rounds: int = 4,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong = weak, strong
        self.rounds, self.threshold, self.unlabelled_weight = rounds, threshold, unlabelled_weight
        self.register_buffer("labels", torch.full((image.count,), -1, dtype=torch.int32))
        self.register_buffer("labelled_at", torch.zeros((), dtype=torch.long))
        self._steps: tuple[int, ...] = ()
        self._labelled_at = 0

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take labels of any number: the images that are classified need not be those that were trained on."""
        super().on_load_checkpoint(checkpoint)
        self.labels = torch.empty_like(checkpoint["state_dict"]["labels"], device=self.labels.device)

    def on_train_start(self) -> None:
        """Where in the rounds the run stands; asked once, so that no step waits for the device."""
        self._steps = round_steps(self.trainer.max_steps, self.rounds)
        self._labelled_at = int(self.labelled_at)
        taken = sum(step < self.trainer.max_steps for step in self._steps)
        if taken < self.rounds:
            log.info("self-training: %d rounds instead of %d, of as few steps", taken, self.rounds)
            self.lowered["rounds"] = taken

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """New labels when it is time, and the loss of one global batch."""
        if self.global_step in self._steps and self._labelled_at < self.global_step:
            self._label()
        labelled, unlabelled = batch
        x, strong = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
        )
        supervised = F.cross_entropy(x, labelled.labels)
        guesses = self.labels[unlabelled.indices]
        unsupervised, mask = self_training_loss(strong, guesses)
        loss = supervised + self.unlabelled_weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(F.one_hot(guesses.long().clamp_min(0), self.image.num_classes), mask)
        return loss

    @torch.no_grad()
    def _label(self) -> None:
        """Label all images, each process its share; the labels of the label index stand."""
        data: SemiSupervisedData = self.trainer.datamodule  # type: ignore[attr-defined]
        found = []
        for batch in data.whole_set():
            probs = self.guided(full_precision(self.ema.module(batch.images)), batch.indices).softmax(1)
            confidence, labels = probs.max(1)
            found.append(torch.where(confidence >= self.threshold, labels, -1))
        self.labels.copy_(gather_uneven(torch.cat(found)))
        rows, known = (torch.tensor(column, device=self.labels.device) for column in data.index.for_training())
        self.labels[rows] = known.to(self.labels.dtype)
        self.labelled_at.fill_(self.global_step)
        self._labelled_at = self.global_step
