"""MSF: Mean Shift for Self-Supervised Learning (Koohpayegani, Tejankar and Pirsiavash, ICCV 2021)."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.ema import EMA
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.guesses import Ring
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import PretrainModule


def mean_shift_loss(predictions: Tensor, neighbours: Tensor) -> Tensor:
    """2 − 2·cos of a prediction and each of its target's neighbours, averaged over both (Eq. 1).

    Args:
        predictions: [n, d].
        neighbours: [n, k, d]; no gradient flows into them.

    Returns:
        The loss, a scalar from 0 to 4, in float32 or better.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        cosines = F.cosine_similarity(predictions.to(dtype)[:, None], neighbours.detach().to(dtype), dim=2)
        return 2 - 2 * cosines.mean()


@torch.no_grad()
def neighbours_in(bank: Tensor, there: Tensor, targets: Tensor, k: int) -> Tensor:
    """The rows of a bank nearest to each target by cosine, [n, k, d].

    Args:
        bank: [m, d], unit rows.
        there: how many rows are there yet, the first ones; int64 [], at least k.
        targets: [n, d], unit rows.
        k: of each, 1 ≤ k ≤ m.
    """
    similar = targets @ bank.T
    empty = torch.arange(len(bank), device=bank.device) >= there
    return bank[similar.masked_fill(empty, -torch.inf).topk(k, dim=1).indices]


class MSF(PretrainModule):
    """The prediction from one view moves to the mean of the nearest neighbours of the other view's target.

    The target is made by a slow copy of the network. Its embeddings of the last images are kept, those of the batch
    itself among them, so that the nearest neighbour of a target is itself: with k = 1 this is BYOL without symmetry.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws the strong view, which is predicted from.
        optimizer: how the weights are updated.
        weak: draws the weak view, of the target: crop and flip alone in the paper. None: as `view`.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        pretrained: start from published weights of the backbone.
        neighbours: k, the target's own embedding among them; 5 or 10.
        bank_size: embeddings kept; at least the global batch.
        momentum: of the target, in [0, 1), constant.
        hidden_dim: of projector and predictor; twice the features' in the published code.
        projection_dim: of their outputs; a quarter of the features' there.
        init_from: checkpoint of an earlier stage whose encoder to start from.
        knn_k: neighbours of the kNN monitor.
    """

    ranges: ClassVar[Ranges] = {
        "neighbours": whole(1),
        "bank_size": whole(2),
        "momentum": at_least(0, below=1),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        weak: nn.Module | None = None,
        backbone: str = "resnet18_cifar",
        pretrained: bool = False,
        neighbours: int = 5,
        bank_size: int = 128_000,
        momentum: float = 0.99,
        hidden_dim: int = 1024,
        projection_dim: int = 128,
        init_from: str | None = None,
        knn_k: int = 200,
    ) -> None:
        encoder = Encoder(backbone, image, pretrained=pretrained)
        super().__init__(encoder, optimizer, init_from=init_from, knn_k=knn_k)
        self.view, self.weak = view, view if weak is None else weak
        self.neighbours = neighbours
        sizes = (hidden_dim, projection_dim)
        self.projector = projection_mlp(encoder.feature_dim, *sizes, output_norm=False)
        self.predictor = projection_mlp(projection_dim, *sizes, output_norm=False)
        self.target = EMA(self._online(), momentum, evaluated=False)
        self.bank = Ring(bank_size, projection_dim)

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the target as a copy of it.

        Raises:
            UslError: the bank is smaller than the batch, or the batch than the neighbours of its first step.
        """
        super().setup(stage)
        if stage != "fit":
            return
        batch_size: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        if len(self.bank.rows) < batch_size:
            raise UslError(
                f"model.bank_size: {len(self.bank.rows)} embeddings cannot hold a batch of {batch_size} "
                f"(data.batch_size); use {batch_size} or more"
            )
        if self.neighbours > batch_size:
            raise UslError(
                f"model.neighbours: {self.neighbours}: the first step has only the {batch_size} of its batch "
                "(data.batch_size)"
            )
        self.target.copy_from(self._online())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (§3)."""
        v = self.predictor(self._online()(self.view(batch.images, batch.key.fold("view"))))
        with torch.no_grad():
            target = self.target.module(self.weak(batch.images, batch.key.fold("weak")))
            u = F.normalize(target.to(self.bank.rows.dtype), dim=1)
            self.bank.write(gather(u))
            nearest = neighbours_in(self.bank.rows, self.bank.written, u, self.neighbours)
        loss = mean_shift_loss(v, nearest)
        self.log_training(v, u, loss=loss)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the target: both are in any checkpoint made after it."""
        optimizer.step(closure=optimizer_closure)
        self.target.update(self._online())

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)
