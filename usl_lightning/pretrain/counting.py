"""Representation Learning by Learning to Count (Noroozi, Pirsiavash and Favaro, ICCV 2017)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

TILES = 4


def counting_loss(whole: Tensor, tiles: Tensor, *, margin: float) -> tuple[Tensor, Tensor]:
    """|φ(x) − Σ φ(tile)|², and max(0, M − |φ(y) − Σ φ(tile)|²) of another image y; means over the images (Eq. 6).

    Args:
        whole: counts of each image, made smaller, [n, d]; the other image of each is the next one.
        tiles: of its tiles, [4, n, d].
        margin: M, above 0.
    """
    total = tiles.sum(0)
    same = (whole - total).square().sum(1)
    other = (whole.roll(-1, 0) - total).square().sum(1)
    return same.mean(), (margin - other).clamp(min=0).mean()


def quarters(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images [n, c, h, w] at half of their sides, [n, c, h/2, w/2], and their quarters [4·n, c, h/2, w/2].

    Raises:
        UslError: odd sides.
    """
    h, w = images.shape[-2:]
    if h % 2 or w % 2:
        raise UslError(
            f"model.view: its images have {h}×{w} pixels, which have no equal quarters; give it an even size"
        )
    tiles = [images[:, :, top : top + h // 2, left : left + w // 2] for top in (0, h // 2) for left in (0, w // 2)]
    return F.avg_pool2d(images, 2), torch.cat(tiles)


def global_loss(outputs: Tensor, *, margin: float) -> tuple[Tensor, Tensor]:
    """Both parts of the loss of the global batch, of a network's outputs for this process's `quarters`, [5·n, d]."""
    parts = F.relu(full_precision(outputs)).view(1 + TILES, len(outputs) // (1 + TILES), -1).transpose(0, 1)
    whole, *tiles = gather(parts).unbind(1)
    return counting_loss(whole, torch.stack(tiles), margin=margin)


class Counting(PretrainModule):
    """What is seen in an image is what is seen in its four quarters together, and not what is seen in another.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image, of even sides; grey ones keep the network from telling the quarters apart by
            the lens's colour fringes.
        optimizer: how the weights are updated.
        counts: d, how many things are counted; no count is below zero.
        hidden_dim: of the MLP that makes them of the features.
        margin: M, by how much the counts of different images are to differ.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {"counts": whole(1), "hidden_dim": whole(1), "margin": above(0)}

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        counts: int = 1000,
        hidden_dim: int = 4096,
        margin: float = 10.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.margin = view, margin
        self.projector = projection_mlp(self.encoder.feature_dim, hidden_dim, counts, norm=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the global batch (Eq. 6)."""
        view = self.view(batch.images, batch.key.fold("view"))
        same, other = global_loss(self.projector(self.encoder(torch.cat(quarters(view)))), margin=self.margin)
        loss = same + other
        self.log_training(loss=loss, same_loss=same, other_loss=other)
        return loss
