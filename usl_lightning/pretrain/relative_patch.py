"""Relative patches: Unsupervised Visual Representation Learning by Context Prediction (Doersch et al., ICCV 2015)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views.patches import patches
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

GRID, CENTRE = 3, 4
NEIGHBOURS = (0, 1, 2, 3, 5, 6, 7, 8)
"""The cells around the middle one, row by row."""


def pairs(view: Tensor, key: Key, *, size: int) -> tuple[Tensor, Tensor]:
    """The middle piece of each image and one drawn of those around it, and which of the eight places that has.

    Args:
        view: [n, c, h, w], from whose 3×3 cells the pieces are taken.
        key: of the n slots.
        size: side of a piece in pixels.

    Returns:
        [2·n, c, size, size], all middle pieces first; int64 [n], 0 to 7.
    """
    pieces = patches(view, key.fold("pieces"), grid=GRID, size=size)
    places = key.fold("place").integers(1, len(NEIGHBOURS))[:, 0]
    slots = torch.arange(len(view), device=pieces.device)
    others = pieces[slots, torch.tensor(NEIGHBOURS, device=pieces.device)[places]]
    return torch.cat([pieces[:, CENTRE], others]), places


class RelativePatch(PretrainModule):
    """Where, of eight places around it, does one piece of an image lie beside another?

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image, from whose 3×3 cells the pieces are taken; grey ones keep the network from
            telling places by the lens's colour fringes.
        optimizer: how the weights are updated.
        patch: side of a piece in pixels, less than a cell's, so that no line goes from one to the next.
        hidden_dim: of the MLP that both pieces' features go through together.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {"patch": whole(1), "hidden_dim": whole(1)}

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        patch: int = 64,
        hidden_dim: int = 4096,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.patch = view, patch
        self.head = projection_mlp(2 * self.encoder.feature_dim, hidden_dim, len(NEIGHBOURS), output_norm=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of two pieces of each image of one global batch: cross-entropy of the second's place (§3)."""
        view = self.view(batch.images, batch.key.fold("view"))
        pieces, places = pairs(view, batch.key, size=self.patch)
        first, second = self.encoder(pieces).chunk(2)
        logits = self.head(torch.cat([first, second], dim=1))
        loss = F.cross_entropy(logits, places)
        self.log_training(loss=loss, places_told=(logits.argmax(1) == places).float().mean())
        return loss
