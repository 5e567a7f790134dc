"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.views.crops import multi_crop
from usl_lightning.models.ema import EMA, target_decay
from usl_lightning.models.guesses import moving_average
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule
from usl_lightning.vectors.sinkhorn import sinkhorn_codes


def self_distillation(students: Sequence[Tensor], targets: Sequence[Tensor], *, temperature: float) -> Tensor:
    """Cross-entropy of the teacher's distribution of each large view and the student's of every other view (Eq. 3).

    Args:
        students: the student's outputs for each view, [n, K]; the first are those that the teacher saw too.
        targets: the teacher's distributions, [n, K]; no gradient flows into them.
        temperature: of the student, above 0; 0.1 in the paper.

    Returns:
        A scalar: the mean over images and pairs of views.
    """
    logs = [F.log_softmax(each / temperature, dim=1) for each in students]
    pairs = [(seen, view) for seen in range(len(targets)) for view in range(len(students)) if seen != view]
    return torch.stack([-(targets[seen].detach() * logs[view]).sum(1).mean() for seen, view in pairs]).mean()


class DINOHead(nn.Module):
    """Features [b, d] -> outputs [b, K]: an MLP of three layers, unit length, cosines with K directions (appendix C).

    Args:
        inputs, hidden, bottleneck, outputs: dimensions.
        norm: batch norm on the hidden layers, for convolutional networks.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((inputs, hidden), (hidden, hidden)):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last = nn.Linear(bottleneck, outputs, bias=False)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, moving: float = 1.0) -> Tensor:
        """Outputs in float32 or better; the directions get `moving`, 0 or 1, times their gradient."""
        x = self.mlp(features)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            directions = F.normalize(self.last.weight.to(dtype), dim=1)
            return F.linear(F.normalize(x.to(dtype), dim=1), torch.lerp(directions.detach(), directions, moving))


class DINO(PretrainModule):
    """A student learns the output of its own slow average, which is centred and sharpened, from other views.

    Centring keeps one output from winning always, sharpening keeps the outputs from being all alike. The published
    code raises weight decay by a cosine and clips each weight's gradient by itself; here decay is constant, and
    `trainer.gradient_clip_val` clips their joint norm.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws the first large view of each image.
        optimizer: how the weights are updated.
        other_view: draws the second; the paper's two are BYOL's. None: as the first.
        small_view: draws the small views, which the student alone sees; a network must take their size.
        small_views: how many of each image; 8 in the paper.
        outputs: K; 65,536 in the paper.
        temperature: of the student.
        target_temperature: of the teacher, from step `warm_up_steps` on.
        warm_up_temperature: of the teacher at step 0, from where it rises linearly.
        warm_up_steps: how long.
        centring: "mean": the moving average of the teacher's outputs is subtracted; "sinkhorn": they are balanced
            over the batch as in SwAV, by three iterations (DINOv2: Oquab et al., 2023).
        centre_momentum: of that moving average, in [0, 1).
        momentum: of the teacher, in [0, 1); it rises to 1 by a cosine.
        frozen_steps: steps before the last layer begins to move; one epoch in the published code.
        hidden_dim, bottleneck_dim: of the head.
        norm: batch norm in the head.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "small_views": whole(0),
        "outputs": whole(2),
        "temperature": above(0),
        "target_temperature": above(0),
        "warm_up_temperature": above(0),
        "warm_up_steps": whole(0),
        "centre_momentum": at_least(0, below=1),
        "momentum": at_least(0, below=1),
        "frozen_steps": whole(0),
        "hidden_dim": whole(1),
        "bottleneck_dim": whole(1),
    }

    centre: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        other_view: nn.Module | None = None,
        small_view: nn.Module | None = None,
        small_views: int = 0,
        outputs: int = 65_536,
        temperature: float = 0.1,
        target_temperature: float = 0.04,
        warm_up_temperature: float = 0.04,
        warm_up_steps: int = 0,
        centring: Literal["mean", "sinkhorn"] = "mean",
        centre_momentum: float = 0.9,
        momentum: float = 0.996,
        frozen_steps: int = 0,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm: bool = False,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.other_view = view, view if other_view is None else other_view
        self.small_view, self.small_views = view if small_view is None else small_view, small_views
        self.temperature, self.target_temperature = temperature, target_temperature
        self.warm_up_temperature, self.warm_up_steps = warm_up_temperature, warm_up_steps
        self.centring, self.centre_momentum, self.momentum = centring, centre_momentum, momentum
        self.frozen_steps = frozen_steps
        self.head = DINOHead(self.encoder.feature_dim, hidden_dim, bottleneck_dim, outputs, norm=norm)
        self.teacher = EMA(self._student(), momentum, evaluated=False)
        self.register_buffer("centre", torch.zeros(outputs))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the teacher as a copy of it."""
        super().setup(stage)
        if stage == "fit":
            self.teacher.copy_from(self._student())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        large = [self.view, self.other_view]
        crops = multi_crop(batch.images, batch.key, large, self.small_view, self.small_views)
        moving = float(self.global_step >= self.frozen_steps)
        students = [x for size in crops for x in self.head(self.encoder(size), moving).split(len(batch))]
        with torch.no_grad():
            outputs = self.teacher.module(crops[0])
            targets = [self._targets(each, batch) for each in outputs.split(len(batch))]
            self._move_centre(gather(outputs))
        with torch.autocast(batch.images.device.type, enabled=False):
            loss = self_distillation(students, targets, temperature=self.temperature)
        self.log_training(*(each - self.centre.to(each.dtype) for each in students[: len(large)]), loss=loss)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the teacher: both are in any checkpoint made after it."""
        step = self.trainer.global_step
        optimizer.step(closure=optimizer_closure)
        self.teacher.decay = target_decay(step, self.trainer.max_steps, self.momentum)
        self.teacher.update(self._student())

    def _targets(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The teacher's distributions for one view of this process's images, [b, K]."""
        rise = self.target_temperature - self.warm_up_temperature
        ramp = ramp_up(self.global_step, self.warm_up_steps) if self.warm_up_steps else 1.0
        temperature = self.warm_up_temperature + rise * ramp
        if self.centring == "sinkhorn":
            return sinkhorn_codes(gather(outputs), epsilon=temperature, iterations=3)[batch.key.slots]
        return ((outputs - self.centre.to(outputs.dtype)) / temperature).softmax(1)

    def _move_centre(self, outputs: Tensor) -> None:
        """Towards the mean of the teacher's outputs of the global batch, for the next one (Eq. 4)."""
        self.centre.copy_(moving_average(self.centre, outputs.mean(0), momentum=self.centre_momentum))

    def _student(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.head)
