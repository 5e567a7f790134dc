"""CPC: Representation Learning with Contrastive Predictive Coding (van den Oord, Li and Vinyals, 2018), of images."""

import logging
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.views.patches import overlapping_patches
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

log = logging.getLogger(__name__)

SCALE = 0.1
"""Of the predictions, so that the first scores are small (Hénaff et al., 2020, appendix)."""


class RowsAbove(nn.Module):
    """A context of each patch that depends on the rows up to its own alone: convolutions with residuals.

    Args:
        channels: of the patches' features, and of the context.
        hidden: channels within a block.
        blocks: each looks one row further up, and one column to each side.
    """

    def __init__(self, channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, hidden, 1),
                nn.ReLU(inplace=True),
                nn.ZeroPad2d((1, 1, 1, 0)),
                nn.Conv2d(hidden, hidden, (2, 3)),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, channels, 1),
            )
            for _ in range(blocks)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[n, channels, rows, columns] of features -> of contexts."""
        for block in self.blocks:
            features = features + block(features)
        return F.relu(features)


def prediction_loss(predictions: Tensor, targets: Tensor, slots: Tensor, below: int) -> Tensor:
    """InfoNCE of the patches `below` rows below, told by their predictions among all patches (Eq. 4).

    Args:
        predictions: [n, rows, columns, d].
        targets: embeddings of the patches of all images, [N, rows, columns, d].
        slots: int64 [n], which of all images the predictions are of.
        below: 1 to rows − 1; of the last rows, which have none so far below, no prediction counts.
    """
    rows, columns, d = predictions.shape[1:]
    own = predictions[:, : rows - below].reshape(-1, d)
    later = torch.arange(below * columns, rows * columns, device=own.device)
    right = (slots[:, None] * (rows * columns) + later).flatten()
    return F.cross_entropy(own @ targets.reshape(-1, d).T, right)


class CPC(PretrainModule):
    """The rows of patches above tell the patches below from all other patches.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image, which is cut into patches.
        optimizer: how the weights are updated.
        patch: side of a patch in pixels; 64 of 256 in the paper. Each is half a side beside or below the one before.
        skipped: rows below a patch that are not predicted; the next one overlaps with it.
        predicted: rows below those that are predicted, at most; as many as there are.
        hidden_dim: channels within the network that makes contexts.
        blocks: its residual blocks.
        projection_dim: of the embeddings that are predicted.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "patch": whole(2),
        "skipped": whole(0),
        "predicted": whole(1),
        "hidden_dim": whole(1),
        "blocks": whole(1),
        "projection_dim": whole(1),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        patch: int = 64,
        skipped: int = 1,
        predicted: int = 5,
        hidden_dim: int = 256,
        blocks: int = 5,
        projection_dim: int = 64,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.patch, self.skipped = view, patch, skipped
        channels = self.encoder.feature_dim
        self.context = RowsAbove(channels, hidden_dim, blocks)
        self.target = nn.Linear(channels, projection_dim)
        self.predictors = nn.ModuleList(nn.Linear(channels, projection_dim) for _ in range(predicted))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Eq. 4), averaged over the rows that are predicted."""
        view = self.view(batch.images, batch.key.fold("view"))
        pieces = overlapping_patches(view, size=self.patch, stride=max(1, self.patch // 2))
        n, rows, columns = pieces.shape[:3]
        below = range(1 + self.skipped, min(rows, 1 + self.skipped + len(self.predictors)))
        if not below:
            raise UslError(
                f"model.patch: {self.patch} pixels make {rows} rows of patches, with none to predict from the first; "
                "use fewer pixels or larger views"
            )
        if len(below) < len(self.predictors) and "predicted" not in self.lowered:
            log.info("CPC: %d rows are predicted instead of %d, of as many below", len(below), len(self.predictors))
            self.lowered["predicted"] = len(below)
        features = self.encoder(pieces.flatten(0, 2)).view(n, rows, columns, -1)
        contexts = self.context(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        targets, predictions = self.target(features), [SCALE * predictor(contexts) for predictor in self.predictors]
        with torch.autocast(features.device.type, enabled=False):
            everyone = gather(full_precision(targets))
            losses = [
                prediction_loss(full_precision(own), everyone, batch.key.slots, rows_below)
                for rows_below, own in zip(below, predictions, strict=False)
            ]
            loss = torch.stack(losses).mean()
        self.log_training(targets[:, rows // 2, columns // 2], loss=loss)
        return loss
