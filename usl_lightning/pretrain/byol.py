"""BYOL: Bootstrap Your Own Latent (Grill et al., 2020)."""

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.ema import EMA, target_decay
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of the unit vectors of a prediction and its target, 2 − 2·cos (Eq. 2), averaged over the batch.

    Args:
        predictions: [n, d].
        targets: [n, d]; no gradient flows into them.

    Returns:
        The loss, a scalar from 0 (all alike) to 4, in float32 or better.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        return 2 - 2 * F.cosine_similarity(predictions.to(dtype), targets.detach().to(dtype), dim=1).mean()


class BYOL(PretrainModule):
    """The prediction from one view of an image meets the other view's projection by a slow copy of the network.

    There are no negatives. The copy has batch statistics of its own and moves after each step of the optimizer. The
    output of neither MLP has batch norm.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image.
        optimizer: how the weights are updated.
        other_view: draws the second view of each image; the paper's two differ in blur and solarisation. None: as
            the first.
        hidden_dim: of both MLPs.
        projection_dim: of their outputs.
        norm: batch norm on the hidden layer of both MLPs.
        momentum: τ₀ of the copy, in [0, 1); it rises to 1 by a cosine (`target_decay`).
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
        "momentum": at_least(0, below=1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        other_view: nn.Module | None = None,
        hidden_dim: int = 4096,
        projection_dim: int = 256,
        norm: bool = True,
        momentum: float = 0.996,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.other_view = view, view if other_view is None else other_view
        self.momentum = momentum
        sizes = (hidden_dim, projection_dim)
        self.projector = projection_mlp(self.encoder.feature_dim, *sizes, norm=norm, output_norm=False)
        self.predictor = projection_mlp(projection_dim, *sizes, norm=norm, output_norm=False)
        self.target = EMA(self._online(), momentum, evaluated=False)

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the target as a copy of it."""
        super().setup(stage)
        if stage == "fit":
            self.target.copy_from(self._online())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch, each view once predicted and once the target (Alg. 1)."""
        v1 = self.view(batch.images, batch.key.fold("view", 0))
        v2 = self.other_view(batch.images, batch.key.fold("view", 1))
        z1, z2 = self._online()(v1), self._online()(v2)
        with torch.no_grad():
            target1, target2 = self.target.module(v1), self.target.module(v2)
        loss = byol_loss(self.predictor(z1), target2) + byol_loss(self.predictor(z2), target1)
        self.log_training(z1, z2, loss=loss)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the target: both are in any checkpoint made after it."""
        step = self.trainer.global_step
        optimizer.step(closure=optimizer_closure)
        self.target.decay = target_decay(step, self.trainer.max_steps, self.momentum)
        self.target.update(self._online())

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)
