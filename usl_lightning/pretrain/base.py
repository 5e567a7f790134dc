"""What every stage-1 method shares: an encoder, its optimizer, and monitors of what it has learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from usl_lightning.data.batch import Batch
from usl_lightning.data.sampling import process_slots
from usl_lightning.distributed import gather_uneven, mean_over_processes
from usl_lightning.errors import UslError
from usl_lightning.evaluation.knn import knn_accuracy
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, init_encoder
from usl_lightning.optim import Optimization


class PretrainModule(LightningModule):
    """Base of the methods that learn features without labels.

    A method sets up its heads after calling this constructor and writes its `training_step`.

    Args:
        encoder: the network to learn; it alone is handed to the next stage.
        optimizer: how all trained weights are updated.
        init_from: checkpoint of an earlier stage whose encoder to start from.
        knn_k: neighbours of the monitor, a weighted kNN classifier (Wu et al., 2018) of the test images
            among the training images; labels are read for this report alone.
        knn_temperature: of its weights, exp(cosine / temperature).

    Attributes:
        sync_batch_norm: whether batch norm is to see the global batch where that can be had (several GPUs).
    """

    sync_batch_norm = True

    def __init__(
        self,
        encoder: Encoder,
        optimizer: Optimization,
        *,
        init_from: str | None = None,
        knn_k: int = 200,
        knn_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.optimization = optimizer
        self.init_from = init_from
        self.knn_k, self.knn_temperature = knn_k, knn_temperature
        self._passes: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder; a checkpoint being resumed is loaded after this and wins.

        Raises:
            UslError: a process would have a single image, or the checkpoint does not fit.
        """
        if stage != "fit":
            return
        batch_size, processes = self.trainer.datamodule.batch_size, self.trainer.world_size  # type: ignore[attr-defined]
        if len(process_slots(batch_size, 0, processes)) < 2:
            raise UslError(
                f"data.batch_size: {batch_size} leaves each process a single image, with nothing to compare it to; "
                f"use {2 * processes} or more"
            )
        if self.init_from is not None:
            init_encoder(self.encoder, self.init_from)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over `trainer.max_steps`."""
        batch_size: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        batch_size *= self.trainer.accumulate_grad_batches
        return self.optimization.build(
            self, max_steps=self.trainer.max_steps, batch_size=batch_size, constant=self.constant_lr
        )

    @property
    def constant_lr(self) -> Sequence[nn.Module]:
        """Parts whose learning rate is not scheduled."""
        return ()

    def log_training(self, **values: Tensor) -> None:
        """Log scalars of a training step, averaged over the processes."""
        self.log_dict(mean_over_processes(**values), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how to rebuild the encoder without this class."""
        checkpoint[ENTRY] = encoder_entry(self.encoder, online="encoder.")

    def write_outputs(self, folder: Path) -> None:
        """Write files that other stages can take from this one by their names without suffix; none here."""

    # Monitors: what the features are worth.

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features: of the training images (dataloader 0) and of the test images (1)."""
        features = self.encoder(batch.images).float()
        self._passes.setdefault(dataloader_idx, []).append((features, batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Log the kNN accuracy and the spread of the features (0 = collapsed; 1/√d = uniform)."""
        passes = [
            tuple(gather_uneven(torch.cat(column)) for column in zip(*self._passes[i], strict=True))
            for i in sorted(self._passes)
        ]
        self._passes.clear()
        features, labels = passes[0]
        normalised = torch.nn.functional.normalize(features, dim=1)
        self.log("feature_std", normalised.std(0).mean(), rank_zero_only=True)
        known = all(bool((part[1] >= 0).any()) for part in passes)
        if len(passes) == 2 and not self.trainer.sanity_checking and known:
            k = min(self.knn_k, len(labels))
            accuracy = knn_accuracy(
                features,
                labels,
                *passes[1],
                k=k,
                temperature=self.knn_temperature,
                num_classes=int(labels.max()) + 1,
            )
            self.log("knn_accuracy", accuracy, prog_bar=True, rank_zero_only=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
