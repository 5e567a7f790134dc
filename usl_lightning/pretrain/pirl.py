"""PIRL: Self-Supervised Learning of Pretext-Invariant Representations (Misra and van der Maaten, CVPR 2020)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, whole, within
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.views.patches import patches
from usl_lightning.models.instances import bank_loss, check_negatives, move_rows
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

GRID = 3


class PIRL(PretrainModule):
    """An image and its nine shuffled pieces are both recognised by what the image was the last time it was met.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image.
        optimizer: how the weights are updated.
        piece_view: draws the view from whose 3×3 cells the pieces are taken. None: as `view`.
        patch: side of a piece in pixels, at most a cell's: 64 of 85 on ImageNet.
        temperature: τ of both losses; 0.07 in the paper.
        negatives: m rows of the bank drawn at random for each image; 32,000 in the paper. null: all, by a softmax.
        momentum: share of a row of the bank that is kept when its image is met, in [0, 1].
        pieces_weight: λ, of the pieces' loss, in [0, 1]; the image's has the rest.
        projection_dim: of the embeddings: a linear layer for the image; one for each piece and one that joins them.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "patch": whole(1),
        "temperature": above(0),
        "negatives": whole(1),
        "momentum": within(0, 1),
        "pieces_weight": within(0, 1),
        "projection_dim": whole(1),
    }

    bank: Tensor
    log_z: Tensor
    estimated: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        piece_view: nn.Module | None = None,
        patch: int = 64,
        temperature: float = 0.07,
        negatives: int | None = None,
        momentum: float = 0.5,
        pieces_weight: float = 0.5,
        projection_dim: int = 128,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.piece_view = view, view if piece_view is None else piece_view
        self.patch, self.temperature, self.negatives = patch, temperature, negatives
        self.momentum, self.pieces_weight = momentum, pieces_weight
        self.projector = nn.Linear(self.encoder.feature_dim, projection_dim)
        self.piece_head = nn.Linear(self.encoder.feature_dim, projection_dim)
        self.pieces_head = nn.Linear(GRID * GRID * projection_dim, projection_dim)
        self.register_buffer("bank", F.normalize(torch.rand(image.count, projection_dim) - 0.5, dim=1))
        self.register_buffer("log_z", torch.tensor(0.0))
        self.register_buffer("estimated", torch.tensor(False))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder.

        Raises:
            UslError: as many negatives as images.
        """
        super().setup(stage)
        if stage == "fit":
            check_negatives(self.negatives, len(self.bank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch, then its rows of the bank, by the image alone (Eq. 5)."""
        image = self.projector(self.encoder(self.view(batch.images, batch.key.fold("view"))))
        pieces = self._embedded_pieces(batch)
        with torch.autocast(image.device.type, enabled=False):
            dtype = torch.promote_types(image.dtype, torch.float32)
            v, w = (F.normalize(each.to(dtype), dim=1) for each in (image, pieces))
            parts = {"image_loss": self._loss(v, batch), "pieces_loss": self._loss(w, batch)}
            loss = torch.lerp(parts["image_loss"], parts["pieces_loss"], self.pieces_weight)
        move_rows(self.bank, gather(v.detach()), gather(batch.indices), self.momentum)
        self.log_training(v, w, loss=loss, **parts)
        return loss

    def _embedded_pieces(self, batch: Batch) -> Tensor:
        """One embedding of an image's pieces in random order, [b, d]."""
        view = self.piece_view(batch.images, batch.key.fold("pieces view"))
        pieces = patches(view, batch.key.fold("pieces"), grid=GRID, size=self.patch)
        order = batch.key.fold("order").order(GRID * GRID)
        slots = torch.arange(len(batch), device=pieces.device)[:, None]
        embedded = self.piece_head(self.encoder(pieces[slots, order].flatten(0, 1)))
        return self.pieces_head(embedded.view(len(batch), -1))

    def _loss(self, v: Tensor, batch: Batch) -> Tensor:
        return bank_loss(v, self.bank, self, batch, negatives=self.negatives, temperature=self.temperature)
