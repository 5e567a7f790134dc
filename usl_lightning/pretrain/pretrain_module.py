"""What every stage-1 method shares: an encoder, its optimizer, and monitors of what it has learned."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_json
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.distributed import gather_uneven, mean_over_processes
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import process_slots
from usl_lightning.evaluation.features import FeatureReport, Features, evaluate_features
from usl_lightning.evaluation.knn import knn_accuracy
from usl_lightning.evaluation.layers import add_layer_probes
from usl_lightning.evaluation.spread import alignment, feature_std, rankme, uniformity
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, init_encoder
from usl_lightning.models.maps import layer_maps
from usl_lightning.models.method import Evaluation, Method

log = logging.getLogger(__name__)

COLLAPSED = -1.0
"""Embeddings of a higher uniformity have collapsed: they lie as in fewer than three points (in three, log ⅓ = −1.1).
Evenly spread ones have about −4. Networks that are trained well may pass through a collapse in their first 20 steps."""

RANKED = 2048
"""Features whose rank a validation tells at most: singular values of more take seconds."""

LOOK_EVERY = 30
"""Steps between two looks whether the embeddings have collapsed: each waits for the device."""


class NetworkOptions(TypedDict, total=False):
    """Parameters that methods hand on to `PretrainModule`."""

    backbone: str
    pretrained: bool
    init_from: str | None
    knn_k: int


class PretrainModule(Method):
    """Base of the methods that learn features without labels.

    A method sets up its heads after calling this constructor, writes its `training_step`, and hands the embeddings
    that its loss compares to `log_training`, which tells when they collapse.

    Args:
        image: channels, size and statistics of the images.
        optimizer: how all trained weights are updated.
        backbone: name of the network, see `usl_lightning.models.backbones`; it alone is handed to the next stage.
        pretrained: start from published weights of the backbone.
        init_from: checkpoint of an earlier stage whose encoder to start from.
        knn_k: neighbours of the monitor, a weighted kNN classifier (Wu et al., 2018) of the test images
            among the training images; labels are read for this report alone.
    """

    ranges: ClassVar[Ranges] = {"knn_k": whole(1)}

    def __init__(
        self,
        image: ImageSpec,
        optimizer: Optimization,
        *,
        backbone: str = "resnet18_cifar",
        pretrained: bool = False,
        init_from: str | None = None,
        knn_k: int = 200,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(backbone, image, pretrained=pretrained)
        self.optimization, self.init_from = optimizer, init_from
        self.knn_k = self.knn_used = knn_k
        """Of the last measurement: at most as many as there are labelled training images."""
        self.lowered: dict[str, int] = {}
        """Other parameters that were used with less than was given."""
        self.measured: tuple[Features, ...] = ()
        """Of the training and the test images, from the last `trainer.test`; the same on every process."""
        self._passes: dict[int, list[Features]] = {}
        self._uniformity: Tensor | None = None  # of the step being taken, if it is looked at
        self._collapsed = False  # was said; no part of the state: a resumed run says again what it finds

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder; a checkpoint being resumed is loaded after this and wins.

        Warns of batches larger than the data set.

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
        if batch_size > self.encoder.image.count > 0 and self.trainer.is_global_zero:
            log.warning(
                f"data.batch_size: {batch_size} places for {self.encoder.image.count} images: some are in a batch "
                "twice, and a contrastive loss takes the two for different images; use a smaller batch"
            )
        if self.init_from is not None:
            init_encoder(self.encoder, self.init_from)

    def log_training(self, *views: Tensor, **values: Tensor) -> None:
        """Log scalars of a training step, averaged over the processes, and how its embeddings lie.

        Args:
            views: embeddings [b, d] of one view of the batch, or of each of two, as the loss compares them. Whenever
                Lightning logs, `embedding_std` and `uniformity` of the first, and the `alignment` of two, go with the
                values, each over the images of one process.
            values: scalars by name.
        """
        looks = bool(views) and self._takes_step(LOOK_EVERY)
        if looks or (views and self._is_logged()):
            values |= {"embedding_std": feature_std(views[0]), "uniformity": uniformity(views[0])}
            if len(views) == 2:
                values["alignment"] = alignment(*views)
        means = mean_over_processes(**values)
        self.log_dict(means, prog_bar=True)
        self._uniformity = means["uniformity"] if looks else None

    def _is_logged(self) -> bool:
        """Whether Lightning logs what this step tells."""
        return self._takes_step(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]

    def _takes_step(self, every: int) -> bool:
        """Whether the number of the step being taken, from 1, is a multiple of `every`; never of 0."""
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Say so when the embeddings have collapsed, and when they have spread again."""
        if self._uniformity is None or self.trainer.global_step % LOOK_EVERY:
            return
        uniform = float(self._uniformity)
        step, said = self.trainer.global_step, f"uniformity {uniform:.2f}; 0 if all are equal, −4 if spread evenly"
        if uniform > COLLAPSED and not self._collapsed:
            self._collapsed = True
            if self.trainer.is_global_zero:
                log.warning(
                    f"features are collapsing: step {step}: the embeddings of different images are nearly the same "
                    f"({said}); lower model.optimizer.lr, or see what keeps this method from collapsing"
                )
        elif uniform < 1.5 * COLLAPSED and self._collapsed:
            self._collapsed = False
            if self.trainer.is_global_zero:
                log.warning(f"features have spread again: step {step} ({said})")

    # What methods ask of the data that look at all of it from time to time.

    @property
    def _data(self) -> ImageData:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _epoch(self, batch_idx: int) -> int | None:
        """The number of the epoch that begins with this micro-batch; None amid one."""
        pieces = self.trainer.accumulate_grad_batches
        steps = max(1, self.encoder.image.count // (self._data.batch_size * pieces))
        epoch, step = divmod(self.global_step, steps)
        return epoch if step == 0 and batch_idx % pieces == 0 else None

    @torch.no_grad()
    def _of_all_images(self, compute: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What is computed of the batches of a pass over this process's share of all images, each part joined.

        The networks are in evaluation mode meanwhile.
        """
        self.eval()
        parts = [compute(batch) for batch in self._data.whole_set()]
        self.train()
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how to rebuild the encoder without this class."""
        checkpoint[ENTRY] = encoder_entry(self.encoder, online="encoder.")

    # Monitors: what the features are worth.

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect features: of training images (dataloader 0) and of test images (1)."""
        features = self.encoder(batch.images).float()
        self._passes.setdefault(dataloader_idx, []).append(Features(features, batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Log the kNN accuracy, the spread of the features (0 = collapsed; 1/√d = uniform) and their rank."""
        self._log_passes(self._collected())

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """The same of all images; they are kept for a closer look."""
        self.measured = self._collected()
        self._log_passes(self.measured)

    def _collected(self) -> tuple[Features, ...]:
        passes = [zip(*self._passes[i], strict=True) for i in sorted(self._passes)]
        self._passes.clear()
        return tuple(Features(*(gather_uneven(torch.cat(column)) for column in columns)) for columns in passes)

    def _log_passes(self, passes: tuple[Features, ...]) -> None:
        features, labels = bank = passes[0]
        self.log("feature_std", feature_std(features), rank_zero_only=True)
        self.log("rankme", rankme(features[:RANKED]), rank_zero_only=True)
        known = all(bool((part.labels >= 0).any()) for part in passes)
        if len(passes) == 2 and not self.trainer.sanity_checking and known:
            before, self.knn_used = self.knn_used, min(self.knn_k, int((labels >= 0).sum()))
            if self.knn_used not in (before, self.knn_k):
                log.info("kNN monitor: k = %d instead of %d, of as many labels", self.knn_used, self.knn_k)
            accuracy = knn_accuracy(*bank, *passes[1], k=self.knn_used, num_classes=int(labels.max()) + 1)
            self.log("knn_accuracy", accuracy, prog_bar=True, rank_zero_only=True)

    def add_figures(self, report: FeatureReport, data: ImageData) -> None:
        """Further figures of `measured`, of data whose training and test images have labels: those of the layers.

        Their maps are pooled to at most as many numbers as there are features: 9,216 of AlexNet, as in SeLa's paper.
        """
        device = self.measured[0].features.device
        encoder = self.encoder.to(device).eval()
        add_layer_probes(
            report, partial(layer_maps, encoder), data.train_source, data.source("test"), most=encoder.feature_dim,
            device=device, seed=data.seed, workers=data.workers,
        )  # fmt: skip

    def evaluate(self, metrics: Mapping[str, Any], data: ImageData, *, closely: bool) -> Evaluation:
        """What was logged; `closely`: everything that can be told of the features."""
        if not closely:
            used = {"knn_k": self.knn_used} if "knn_accuracy" in metrics else {}
            return Evaluation({**metrics, **used, **self.lowered, **data.lowered})
        report = evaluate_features(*self.measured, knn_k=self.knn_k, seed=data.seed)
        if "probe_accuracy" in report.metrics:
            self.add_figures(report, data)
        images = {name: len(part.labels) for name, part in zip(("train", "test"), self.measured, strict=False)}

        def write(path: Path, about: Mapping[str, Any]) -> None:
            write_json(path, {**about, "images": images, **report.as_dict()})

        return Evaluation(report.metrics, report.table(), write)
