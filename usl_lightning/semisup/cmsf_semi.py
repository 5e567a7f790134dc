"""CMSF-semi: Constrained Mean Shift Using Distant Yet Related Neighbors (Tejankar et al., ECCV 2022)."""

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, at_least, whole, within
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.data.keys import permutation
from usl_lightning.data.modules import SemiSupervisedData
from usl_lightning.models.ema import EMA
from usl_lightning.models.guesses import Ring
from usl_lightning.models.heads import projection_mlp
from usl_lightning.models.mean_shift import constrained_loss
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule

log = logging.getLogger(__name__)

ROWS = 256
"""Embeddings in a batch of these trainings, as published."""


def group_labels(known: Tensor, logits: Tensor, *, threshold: float) -> Tensor:
    """Its label where an image has one, else a confident pseudo-label, else -1; int64 [n].

    Args:
        known: labels, -1 where there is none, int64 [n].
        logits: of the classes, [n, c].
        threshold: the least probability of a pseudo-label, in [0, 1].
    """
    confidence, guesses = logits.softmax(1).max(1)
    return torch.where(known >= 0, known, torch.where(confidence >= threshold, guesses, -1))


def related_rows(labels: Tensor, bank_labels: Tensor, there: Tensor) -> Tensor:
    """The rows of the bank that an image's neighbours are looked for among, bool [n, m]: all, for one without a label.

    Args:
        labels: int64 [n], -1: none.
        bank_labels: of the rows, int64 [m], -1: none.
        there: which rows have been written, bool [m].
    """
    return there & ((labels[:, None] == bank_labels) | (labels < 0)[:, None])


class CMSFSemi(SemiSupervisedModule):
    """Mean shift whose neighbours are images of the same label, or of the same confident pseudo-label.

    The pseudo-labels are those of a small network on the target's embeddings. It is trained by itself, in the middle
    and at the end of each epoch, on the last embeddings of the labelled images.

    That trains an encoder, which the paper then fine-tunes: here `FineTune` with `init_from`. What is evaluated is a
    layer on its features that learns, without a gradient to them, labels and pseudo-labels.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        view: draws the strong view, which is predicted from.
        optimizer: how the weights are updated.
        weak: draws the weak view, of the target: crop and flip alone in the paper. None: as `view`.
        threshold: the least probability of a pseudo-label.
        neighbours: k, the target's own embedding among them.
        bank_size: embeddings kept of all images; at least the global batch.
        cache_size: embeddings kept of labelled images.
        momentum: of the target, in [0, 1), constant.
        trainings: of the network of pseudo-labels, in an epoch of the unlabelled images; published: 1 where batches are
            of 1,024 images.
        passes: over the embeddings in each.
        hidden_dim: of projector and predictor; twice the features' in the published code.
        projection_dim: of their outputs; a quarter of the features' there. The pseudo-labels' hidden layer has twice
            as many.
        network: the network, its start, its moving average, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "threshold": within(0, 1),
        "neighbours": whole(1),
        "bank_size": whole(2),
        "cache_size": whole(2),
        "momentum": at_least(0, below=1),
        "trainings": whole(1),
        "passes": whole(1),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
    }

    labels: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        weak: nn.Module | None = None,
        threshold: float = 0.85,
        neighbours: int = 10,
        bank_size: int = 128_000,
        cache_size: int = 128_000,
        momentum: float = 0.99,
        trainings: int = 2,
        passes: int = 10,
        hidden_dim: int = 1024,
        projection_dim: int = 128,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.weak = view, view if weak is None else weak
        self.threshold, self.neighbours = threshold, neighbours
        self.trainings, self.passes = trainings, passes
        sizes = (hidden_dim, projection_dim)
        self.projector = projection_mlp(self.model.encoder.feature_dim, *sizes, output_norm=False)
        self.predictor = projection_mlp(projection_dim, *sizes, output_norm=False)
        self.target = EMA(self._online(), momentum, evaluated=False)
        self.labeller = projection_mlp(projection_dim, 2 * projection_dim, image.num_classes, output_norm=False)
        for parameter in self.labeller[-1].parameters():  # sure of nothing until it is trained
            nn.init.zeros_(parameter)
        self.labeller.requires_grad_(False)  # has an optimizer of its own
        self.bank, self.bank_labels = Ring(bank_size, projection_dim), Ring(bank_size, 1, torch.int64)
        self.cache, self.cache_labels = Ring(cache_size, projection_dim), Ring(cache_size, 1, torch.int64)
        self.register_buffer("labels", torch.empty(0, dtype=torch.long), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> "CMSFSemi":
        """Training mode; the network of pseudo-labels is in it only while it is trained."""
        super().train(mode)
        self.labeller.eval()
        return self

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the target as a copy of it.

        Raises:
            UslError: the bank is smaller than the batch or than the neighbours.
        """
        super().setup(stage)
        if stage != "fit":
            return
        batch_size = self._data.batch_size * (1 + self._data.unlabelled_ratio)
        if len(self.bank.rows) < batch_size:
            raise UslError(
                f"model.bank_size: {len(self.bank.rows)} embeddings cannot hold a batch of {batch_size} images, "
                f"labelled and unlabelled; use {batch_size} or more"
            )
        if self.neighbours > len(self.bank.rows):
            raise UslError(
                f"model.neighbours: {self.neighbours} of a bank of {len(self.bank.rows)} embeddings; use fewer"
            )
        images, labels = (torch.tensor(column) for column in self._data.index.for_training())
        self.labels = torch.full((len(self._data.train_source),), -1).index_copy_(0, images, labels)
        self.target.copy_from(self._online())
        if self.trainings > 1 and self._epoch_steps() < self.trainings:
            most = self.lowered["trainings"] = max(1, self._epoch_steps())
            log.info(
                "CMSF-semi: %d trainings of the network of pseudo-labels instead of %d, one a step",
                most,
                self.trainings,
            )

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (§3)."""
        labelled, unlabelled = batch
        if self._training_is_due(batch_idx):
            self._train_labeller()
        features = self.model.encoder(torch.cat([self.view(part.images, part.key.fold("view")) for part in batch]))
        v = self.predictor(self.projector(features))
        logits = full_precision(self.model.head(features.detach()))
        x, logits = torch.split(logits, [len(labelled), len(unlabelled)])
        with torch.no_grad():
            weak = torch.cat([self.weak(part.images, part.key.fold("weak")) for part in batch])
            u = F.normalize(self.target.module(weak).to(self.bank.rows.dtype), dim=1)
            labels = self._labels(u, torch.cat([part.indices for part in batch]))
            self._keep(u, labels, labelled.labels)
            there = torch.arange(len(self.bank.rows), device=u.device) < self.bank.written
            allowed = related_rows(labels, self.bank_labels.rows[:, 0], there)
        shift = constrained_loss(v, u, self.bank.rows, allowed, self.neighbours).mean()
        pseudo = labels[len(labelled) :]
        losses = F.cross_entropy(logits, pseudo.clamp_min(0), reduction="none") * (pseudo >= 0)
        classifier = F.cross_entropy(x, labelled.labels) + losses.mean()
        loss = shift + classifier
        self.log_guesses(F.one_hot(pseudo.clamp_min(0), self.image.num_classes), pseudo >= 0)
        self.log_training(loss=loss, shift_loss=shift, classifier_loss=classifier)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of both averages: they are in any checkpoint made after it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.target.update(self._online())

    def _labels(self, u: Tensor, indices: Tensor) -> Tensor:
        """Labels int64 [n] of the images `indices` with targets [n, d], -1 where none is known or guessed."""
        with torch.autocast(u.device.type, enabled=False):
            guesses = self.guided(self.labeller(u), indices)
        return group_labels(self.labels[indices], guesses, threshold=self.threshold)

    def _keep(self, u: Tensor, labels: Tensor, known: Tensor) -> None:
        """Targets [n, d] and their labels [n] in the bank, those of the labelled images in the cache, of all processes.

        Args:
            known: labels of the first images, the labelled ones.
        """
        sizes = [len(known), len(u) - len(known)]
        parts = [gather(part) for part in torch.split(u, sizes)]
        self.bank.write(torch.cat(parts))
        self.bank_labels.write(torch.cat([gather(part) for part in torch.split(labels, sizes)])[:, None])
        self.cache.write(parts[0])
        self.cache_labels.write(gather(known)[:, None])

    def _training_is_due(self, batch_idx: int) -> bool:
        """Whether this is the first micro-batch after a share of an epoch of the unlabelled images."""
        steps = max(1, self._epoch_steps() // self.trainings)
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        return self.global_step > 0 and self.global_step % steps == 0 and first

    def _epoch_steps(self) -> int:
        """Steps in which as many images are drawn as there are without a label."""
        data = self._data
        return data.unlabelled_count // (data.batch_size * data.unlabelled_ratio * self.trainer.accumulate_grad_batches)

    def _train_labeller(self) -> None:
        """Each process does the same, on the embeddings of all."""
        count = min(int(self.cache.written), len(self.cache.rows))
        z, labels = self.cache.rows[:count], self.cache_labels.rows[:count, 0]
        self.labeller.requires_grad_(True).train()
        optimizer = torch.optim.SGD(self.labeller.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        with torch.autocast(z.device.type, enabled=False):
            for number in range(self.passes):
                order = permutation(count, self._data.seed, "pseudo-labels", self.global_step, number).to(z.device)
                for rows in torch.split(order, ROWS):
                    if len(rows) > 1:  # batch norm needs two
                        optimizer.zero_grad()
                        F.cross_entropy(self.labeller(z[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
        optimizer.zero_grad()
        self.labeller.requires_grad_(False).eval()

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.model.encoder, self.projector)

    @property
    def _data(self) -> SemiSupervisedData:
        return self.trainer.datamodule  # type: ignore[attr-defined]
