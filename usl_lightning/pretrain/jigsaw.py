"""Jigsaw: Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles (Noroozi and Favaro, ECCV 2016)."""

import itertools
from functools import cache
from typing import ClassVar, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key, derive_seed
from usl_lightning.data.views.patches import patches
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

GRID = 3


@cache
def spread_permutations(count: int, pieces: int = GRID * GRID) -> Tensor:
    """`count` orders of the pieces that differ much: each has the largest mean Hamming distance to those before.

    The same ones on every machine; the first is drawn at random, of equally distant ones the first in alphabetical
    order counts (Alg. 1).

    Args:
        count: from 1 to `pieces`!.
        pieces: 9 of a grid of 3×3.

    Returns:
        int64 [count, pieces].
    """
    every = np.array(list(itertools.permutations(range(pieces))), dtype=np.int8)
    distance = np.zeros(len(every), dtype=np.int32)
    chosen = [derive_seed("jigsaw") % len(every)]
    while len(chosen) < count:
        distance += (every != every[chosen[-1]]).sum(1, dtype=np.int32)
        distance[chosen[-1]] = np.iinfo(np.int32).min
        chosen.append(int(distance.argmax()))
    return torch.from_numpy(every[chosen].astype(np.int64))


def puzzles(view: Tensor, orders: Tensor, key: Key, *, size: int) -> tuple[Tensor, Tensor]:
    """The nine pieces of each image in an order drawn for it, and which of the orders that is.

    Args:
        view: [n, c, h, w], from whose 3×3 cells the pieces are taken.
        orders: int64 [k, 9].
        key: of the n slots.
        size: side of a piece in pixels.

    Returns:
        [9·n, c, size, size], image by image; int64 [n], below k.
    """
    pieces = patches(view, key.fold("pieces"), grid=GRID, size=size)
    drawn = key.fold("order").integers(1, len(orders))[:, 0]
    slots = torch.arange(len(view), device=pieces.device)[:, None]
    return pieces[slots, orders[drawn]].flatten(0, 1), drawn


def head_of_pieces(inputs: int, outputs: int) -> nn.Sequential:
    """What each piece's features go through before they are joined."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True))


class Jigsaw(PretrainModule):
    """In which of a set of orders are the nine pieces of an image? Who knows what it shows can tell.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image, from whose 3×3 cells the pieces are taken.
        optimizer: how the weights are updated.
        patch: side of a piece in pixels, less than a cell's: 64 of 85 on ImageNet.
        permutations: orders to tell apart; 100 to 10,000 in the literature.
        hidden_dim: of the layer that each piece's features go through before they are joined; 1,000 in published code.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "patch": whole(1),
        "permutations": whole(2, up_to=362_880),
        "hidden_dim": whole(1),
    }

    orders: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        patch: int = 64,
        permutations: int = 100,
        hidden_dim: int = 1000,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.patch = view, patch
        self.piece_head = head_of_pieces(self.encoder.feature_dim, hidden_dim)
        self.head = nn.Linear(GRID * GRID * hidden_dim, permutations)
        self.register_buffer("orders", spread_permutations(permutations))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the pieces of one global batch: cross-entropy of their order."""
        view = self.view(batch.images, batch.key.fold("view"))
        pieces, drawn = puzzles(view, self.orders, batch.key, size=self.patch)
        logits = self.head(self.piece_head(self.encoder(pieces)).view(len(batch), -1))
        loss = F.cross_entropy(logits, drawn)
        self.log_training(loss=loss, orders_told=(logits.argmax(1) == drawn).float().mean())
        return loss
