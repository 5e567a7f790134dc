"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


def nt_xent(z1: Tensor, z2: Tensor, *, temperature: float) -> Tensor:
    """Normalised-temperature cross-entropy (SimCLR, Eq. 1), averaged over all 2n views.

    Args:
        z1, z2: projections of the two views, [n, d]; row i of one is the positive of row i of the other, all
            other 2n - 2 views are its negatives. They need not be normalised.
        temperature: above 0; 0.5 on CIFAR, 0.1 on ImageNet.

    Returns:
        The loss, a scalar in float32 or better.
    """
    n = len(z1)
    with torch.autocast(z1.device.type, enabled=False):  # logits of 8 bits would blur the negatives
        z = F.normalize(torch.cat([z1, z2]).to(torch.promote_types(z1.dtype, torch.float32)), dim=1)
        similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
        positives = torch.arange(2 * n, device=z.device).roll(n)
        return F.cross_entropy(similarity, positives)


class SimCLR(PretrainModule):
    """Two views of an image attract each other and repel all other images of the global batch.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image; called twice with independent keys.
        optimizer: how the weights are updated.
        temperature: of the loss.
        hidden_dim, projection_dim: sizes of the projection MLP.
        projection_layers: 2 in SimCLR, 3 in SimCLRv2.
        projection_norm: batch norm in the projection MLP.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "temperature": above(0),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
        "projection_layers": whole(1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        temperature: float = 0.5,
        hidden_dim: int = 512,
        projection_dim: int = 128,
        projection_layers: int = 2,
        projection_norm: bool = True,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view = view
        self.temperature = temperature
        self.projector = projection_mlp(
            self.encoder.feature_dim, hidden_dim, projection_dim, layers=projection_layers, norm=projection_norm
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        views = [self.view(batch.images, batch.key.fold("view", i)) for i in range(2)]
        z1, z2 = self.projector(self.encoder(torch.cat(views))).chunk(2)
        loss = nt_xent(gather(z1), gather(z2), temperature=self.temperature)
        self.log_training(z1, z2, loss=loss)
        return loss
