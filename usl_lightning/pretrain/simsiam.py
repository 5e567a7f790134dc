"""SimSiam: Exploring Simple Siamese Representation Learning (Chen and He, 2021)."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.heads import prediction_mlp, projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Negative cosine similarity (SimSiam, Eq. 1), averaged over the batch.

    Args:
        p: predictions [n, d].
        z: what they predict, [n, d]. Gradients flow into it too unless it is detached.

    Returns:
        The loss, a scalar from -1 (all alike) to 1, in float32 or better.
    """
    with torch.autocast(p.device.type, enabled=False):
        dtype = torch.promote_types(p.dtype, torch.float32)
        return -F.cosine_similarity(p.to(dtype), z.to(dtype), dim=1).mean()


class SimSiam(PretrainModule):
    """The prediction from one view of an image meets the projection of the other, which is held still.

    `uniformity` in the log, of the projections, tells a collapse: batch norm keeps their standard deviation up. Weight
    decay spares biases and norms, as everywhere here; the published code decays them too.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image; called twice with independent keys.
        optimizer: how the weights are updated; the predictor's learning rate stays constant.
        hidden_dim, projection_dim: sizes of the projection MLP.
        projection_layers: 3 on ImageNet, 2 on CIFAR.
        prediction_dim: bottleneck of the prediction MLP; a quarter of `projection_dim` in the paper.
        norm: batch norm in both MLPs.
        stop_gradient: hold the projections still; without it everything collapses (§4.1).
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
        "projection_layers": whole(1),
        "prediction_dim": whole(1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        hidden_dim: int = 2048,
        projection_dim: int = 2048,
        projection_layers: int = 3,
        prediction_dim: int = 512,
        norm: bool = True,
        stop_gradient: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view = view
        self.stop_gradient = stop_gradient
        sizes = (self.encoder.feature_dim, hidden_dim, projection_dim)
        self.projector = projection_mlp(*sizes, layers=projection_layers, norm=norm, affine_output=False)
        self.predictor = prediction_mlp(projection_dim, prediction_dim, norm=norm)

    @property
    def constant_lr(self) -> Sequence[nn.Module]:
        """The predictor: it should follow the latest features at any time (§4.2)."""
        return (self.predictor,)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1); batch norm sees one view at a time."""
        views = [self.view(batch.images, batch.key.fold("view", i)) for i in range(2)]
        z1, z2 = (self.projector(self.encoder(view)) for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        target1, target2 = (z1.detach(), z2.detach()) if self.stop_gradient else (z1, z2)
        loss = (negative_cosine(p1, target2) + negative_cosine(p2, target1)) / 2
        self.log_training(z1, z2, loss=loss)
        return loss
