"""Mean teachers are better role models (Tarvainen & Valpola, 2017)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, within
from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import consistency_loss
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


class MeanTeacher(SemiSupervisedModule):
    """The moving average of the weights is the teacher: the network is to predict another view as that does.

    The teacher is the average that is evaluated; while it teaches, it normalises with the statistics of its batch.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of all images; of the unlabelled ones it is drawn twice, for student and teacher.
        optimizer: how the weights are updated.
        unlabelled_weight: the final weight of the unlabelled loss.
        ramp: share of the training over which that weight rises linearly from 0.
        network: the network, whose moving average is the teacher, its start, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"unlabelled_weight": at_least(0), "ramp": within(0, 1)}

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        optimizer: Optimization,
        unlabelled_weight: float = 50.0,
        ramp: float = 0.4,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.unlabelled_weight, self.ramp = weak, unlabelled_weight, ramp

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (§2)."""
        labelled, unlabelled = batch
        teacher = self.teacher_logits(self.weak(unlabelled.images, unlabelled.key.fold("weak", 0)))
        teacher = self.guided(teacher, unlabelled.indices)
        x, student = self.logits(
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak", 1)),
        )
        supervised = F.cross_entropy(x, labelled.labels)
        unsupervised = consistency_loss(student, teacher)
        weight = self.unlabelled_weight * ramp_up(self.global_step, self.steps_of(self.ramp))
        loss = supervised + weight * unsupervised
        self.log_training(loss=loss, supervised_loss=supervised, unsupervised_loss=unsupervised)
        self.log_guesses(teacher, torch.ones_like(teacher[:, 0]))
        return loss
