"""SimCLRv2's distillation (Chen et al., 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners")."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.heads import Classifier, load_classifier
from usl_lightning.semisup.semisup_module import SemiSupervisedModule, StartOptions


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of the student against the teacher's soft labels, both at temperature τ (Eq. 2).

    Args:
        student_logits: [n, classes].
        teacher_logits: [n, classes]; no gradient flows into them.
        temperature: τ, above 0.

    Returns:
        −Σ_y P_teacher(y; τ)·log P_student(y; τ), averaged over n.
    """
    return F.cross_entropy(student_logits / temperature, (teacher_logits.detach() / temperature).softmax(1))


class Distill(SemiSupervisedModule):
    """A fine-tuned classifier teaches a student on all images.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        view: of the images, the same for teacher and student; published: random crop and mirror.
        optimizer: how the weights are updated.
        teacher_from: checkpoint of stage 3, the teacher, which must be given; its moving average teaches.
        backbone: name of the student's network; it may be another than the teacher's.
        temperature: τ; published: 0.1 for a student like its teacher, 1 for a smaller one. Gradients grow as 1/τ, which
            LARS evens out; with SGD a small τ needs a lower learning rate.
        distillation_weight: α of Eq. 3, in (0, 1]: the loss is α·distillation + (1 − α)·cross-entropy on labels, each
            a mean over its images. 1, as published, leaves the labels out.
        ema_decay: of the moving average that is evaluated; 0, as published, evaluates the trained network itself.
        start: what the student starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {"temperature": above(0), "distillation_weight": above(0, up_to=1)}

    needs = ("teacher_from",)

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        teacher_from: str | None = None,
        backbone: str = "resnet18_cifar",
        temperature: float = 1.0,
        distillation_weight: float = 1.0,
        ema_decay: float = 0.0,
        **start: Unpack[StartOptions],
    ) -> None:
        super().__init__(image, optimizer, backbone=backbone, ema_decay=ema_decay, **start)
        self.view, self.teacher_from = view, teacher_from
        self.temperature, self.distillation_weight = temperature, distillation_weight
        self._teacher: list[Classifier] = []  # a list, not a part of the model: it is not trained, stored or resumed

    def setup(self, stage: str) -> None:
        """Load the teacher.

        Raises:
            UslError: there is none, or it knows other classes or images.
        """
        super().setup(stage)
        if stage == "fit":
            if self.teacher_from is None:
                raise UslError("model.teacher_from: expected a checkpoint of stage 3; `usl fit` writes one")
            teacher = load_classifier(self.teacher_from)
            _check_teacher(teacher, self.model, self.teacher_from)
            self._teacher = [teacher.requires_grad_(False).to(self.trainer.strategy.root_device)]

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Eq. 3)."""
        labelled, unlabelled = batch
        views = self.view(unlabelled.images, unlabelled.key.fold("view"))
        with torch.no_grad():
            targets = self.guided(self._teacher[0](views), unlabelled.indices)
        if self.distillation_weight < 1:
            x, student = self.logits(self.view(labelled.images, labelled.key.fold("view")), views)
            supervised = F.cross_entropy(x, labelled.labels)
        else:
            student = full_precision(self.model(views))
            supervised = student.new_zeros(())
        targets = targets.to(student.dtype)  # the teacher's weights are of 32 bits in any precision
        distillation = distillation_loss(student, targets, temperature=self.temperature)
        loss = self.distillation_weight * distillation + (1 - self.distillation_weight) * supervised
        agreement = (student.argmax(1) == targets.argmax(1)).float().mean()
        self.log_training(
            loss=loss, supervised_loss=supervised, distillation_loss=distillation, teacher_agreement=agreement
        )
        return loss


def _check_teacher(teacher: Classifier, student: Classifier, path: str) -> None:
    theirs, ours = teacher.encoder.image, student.encoder.image
    if theirs.classes != ours.classes:
        raise UslError(
            f"model.teacher_from: {path} knows {theirs.num_classes} classes ({', '.join(theirs.classes[:3])}, …), the "
            f"label index {ours.num_classes} ({', '.join(ours.classes[:3])}, …); expected the same in the same order"
        )
    if theirs.channels != ours.channels:
        raise UslError(
            f"model.teacher_from: {path} takes {theirs.channels}-channel images, these have {ours.channels}; "
            f"set data.channels to {theirs.channels}"
        )
