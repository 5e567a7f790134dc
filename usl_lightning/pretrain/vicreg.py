"""VICReg: Variance-Invariance-Covariance Regularization (Bardes, Ponce and LeCun, ICLR 2022)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

EPSILON = 1e-4
"""ε under the root of the variance, as published."""


def variance_loss(z: Tensor) -> Tensor:
    """How far the deviation of each variable stays below 1: mean of max(0, 1 − √(Var + ε)) (Eqs. 1 and 2).

    Args:
        z: embeddings [n, d], n ≥ 2.
    """
    return F.relu(1 - (z.var(0) + EPSILON).sqrt()).mean()


def covariance_loss(z: Tensor) -> Tensor:
    """The squares of the covariances of different variables, over d: 0 if they are uncorrelated (Eqs. 3 and 4).

    Args:
        z: embeddings [n, d], n ≥ 2.
    """
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


class VICReg(PretrainModule):
    """Two views of an image get the same embedding, while no variable may stand still or repeat another.

    There are no negatives, no copy of the network and no prediction: what prevents a collapse is in the loss.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image; called twice with independent keys.
        optimizer: how the weights are updated.
        other_view: draws the second view of each image; the paper's are BYOL's pair. None: as the first.
        invariance: λ, weight of the squared distance of two views.
        variance: μ, weight of `variance_loss`.
        covariance: ν, weight of `covariance_loss`.
        hidden_dim: of the expander, an MLP of three layers; its output has no batch norm.
        projection_dim: of its output.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "invariance": at_least(0),
        "variance": at_least(0),
        "covariance": at_least(0),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        other_view: nn.Module | None = None,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden_dim: int = 8192,
        projection_dim: int = 8192,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.other_view = view, view if other_view is None else other_view
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        sizes = (self.encoder.feature_dim, hidden_dim, projection_dim)
        self.expander = projection_mlp(*sizes, layers=3, output_norm=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Eqs. 5 and 6)."""
        own = [
            self.expander(self.encoder(view(batch.images, batch.key.fold("view", number))))
            for number, view in enumerate((self.view, self.other_view))
        ]
        with torch.autocast(batch.images.device.type, enabled=False):
            z1, z2 = (gather(z.to(torch.promote_types(z.dtype, torch.float32))) for z in own)
            parts = {
                "invariance_loss": F.mse_loss(z1, z2),
                "variance_loss": (variance_loss(z1) + variance_loss(z2)) / 2,
                "covariance_loss": covariance_loss(z1) + covariance_loss(z2),
            }
            loss = (
                self.invariance * parts["invariance_loss"]
                + self.variance * parts["variance_loss"]
                + self.covariance * parts["covariance_loss"]
            )
        self.log_training(*own, loss=loss, **parts)
        return loss
