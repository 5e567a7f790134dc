"""Distillation of a published network into one of one's own, on one's own images, without labels."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.backbones import native_size
from usl_lightning.models.encoder import Encoder, load_encoder
from usl_lightning.models.guesses import Ring
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


def relational_loss(own: Tensor, taught: Tensor, others: Tensor, there: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of two distributions over other images: by the teacher's similarities, and by the student's.

    SEED (Fang et al., ICLR 2021, Eq. 3).

    Args:
        own: the student's embeddings, unit rows [n, d].
        taught: the teacher's of the same images, unit rows [n, d].
        others: the teacher's of other images, unit rows [m, d]; the image itself is the first of its m + 1.
        there: bool [m], which of these count.
        temperature: above 0, of both.

    Returns:
        A scalar, the mean over images.
    """
    logits = []
    for rows in (own, taught):
        positive = (rows * taught).sum(1, keepdim=True)
        negatives = (rows @ others.T).masked_fill(~there, -torch.inf)
        logits.append(torch.cat([positive, negatives], dim=1) / temperature)
    student, teacher = logits[0].log_softmax(1), logits[1].softmax(1)
    return -(teacher * student.masked_fill(teacher == 0, 0)).sum(1).mean()


class Taught(PretrainModule):
    """A student gives images the features of a published teacher, and places them as it does among other images.

    The loss is the squared distance of unit features, 2 − 2·cos, and `relational_loss` over the teacher's features of
    the last images. The teacher stands still; it looks at the same views, enlarged to its own size.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image.
        optimizer: how the weights are updated.
        teacher: a network of timm with published weights, `tf_efficientnet_lite0` for one.
        teacher_from: in its place, a checkpoint whose encoder teaches: of an earlier stage, or of `usl import`.
        teacher_size: side of the images that the teacher looks at, in pixels. None: that which it was made for.
        relational_weight: of `relational_loss`.
        temperature: of it.
        bank_size: the teacher's features that are kept for it.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "teacher_size": whole(1),
        "relational_weight": at_least(0),
        "temperature": above(0),
        "bank_size": whole(1),
    }

    needs = ("teacher or teacher_from",)

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        teacher: str | None = None,
        teacher_from: str | None = None,
        teacher_size: int | None = None,
        relational_weight: float = 1.0,
        temperature: float = 0.07,
        bank_size: int = 4096,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.relational_weight, self.temperature = view, relational_weight, temperature
        self.teacher = _teacher(teacher, teacher_from, teacher_size).requires_grad_(False)
        self.projector = nn.Linear(self.encoder.feature_dim, self.teacher.feature_dim)
        self.bank = Ring(bank_size, self.teacher.feature_dim)
        self.train()

    def train(self, mode: bool = True) -> "Taught":
        """The teacher never is in training mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch, then the teacher's features of it."""
        view = self.view(batch.images, batch.key.fold("view"))
        with torch.no_grad():
            taught = self.teacher(_fitted(view, self.teacher.image))
        projected = self.projector(self.encoder(view))
        with torch.autocast(view.device.type, enabled=False):
            dtype = torch.promote_types(projected.dtype, torch.float32)
            own, taught = (F.normalize(each.to(dtype), dim=1) for each in (projected, taught))
            there = torch.arange(len(self.bank.rows), device=own.device) < self.bank.written
            parts = {
                "feature_loss": 2 - 2 * (own * taught).sum(1).mean(),
                "relational_loss": relational_loss(
                    own, taught, self.bank.rows.to(dtype, copy=True), there, temperature=self.temperature
                ),
            }
            loss = parts["feature_loss"] + self.relational_weight * parts["relational_loss"]
        self.bank.write(gather(taught))
        self.log_training(own, taught, loss=loss, **parts)
        return loss


def _teacher(name: str | None, path: str | None, size: int | None) -> Encoder:
    if (name is None) == (path is None):
        raise UslError("model.teacher: expected a network of timm, or a checkpoint as model.teacher_from; one of them")
    if path is not None:
        encoder = load_encoder(path)
    else:
        side = size or native_size(str(name))[0]
        encoder = Encoder(str(name), ImageSpec(3, side, side, (0.0,) * 3, (1.0,) * 3), pretrained=True)
    if size is not None:
        encoder.image.height = encoder.image.width = size
    return encoder


def _fitted(images: Tensor, spec: ImageSpec) -> Tensor:
    """Views as the teacher looks at them: enlarged, and of its channels."""
    if images.shape[1] != spec.channels:
        images = images.expand(-1, spec.channels, -1, -1) if images.shape[1] == 1 else images.mean(1, keepdim=True)
    if tuple(images.shape[-2:]) == (spec.height, spec.width):
        return images
    return F.interpolate(images, (spec.height, spec.width), mode="bilinear", antialias=True)
