"""MSF: Mean Shift for Self-Supervised Learning (Koohpayegani, Tejankar and Pirsiavash, ICCV 2021).

With a constraint it is CMSF: Constrained Mean Shift Using Distant Yet Related Neighbors (Tejankar et al., ECCV 2022).
"""

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, at_least, whole, within
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.opening import read_labels
from usl_lightning.models.ema import EMA
from usl_lightning.models.guesses import Ring, remember
from usl_lightning.models.heads import projection_mlp
from usl_lightning.models.mean_shift import constrained_loss, ranks_of_allowed
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule
from usl_lightning.vectors.kmeans import kmeans

log = logging.getLogger(__name__)

Constraint = Literal["none", "previous", "clusters", "labels"]

CLUSTER_ITERATIONS = 20
"""Of k-means after an epoch, as published."""


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

    With a constraint, CMSF, neighbours are also looked for among the kept embeddings of related images alone. An image
    has MSF's loss until anything is known of it. Where fewer than k rows are allowed the mean is over those there are;
    the published code fills up with arbitrary ones. How far away related rows are is logged: `related_rank`, their mean
    place among all rows by similarity (1: the nearest of all), and `related_overlap`, the share that MSF takes too.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws the strong view, which is predicted from.
        optimizer: how the weights are updated.
        weak: draws the weak view, of the target: crop and flip alone in the paper. None: as `view`.
        neighbours: k, the target's own embedding among them; 5 or 10.
        bank_size: embeddings kept; at least the global batch.
        momentum: of the target, in [0, 1), constant.
        constraint: which images are related: "none": MSF. "previous": those whose embeddings of the epoch before were
            near (CMSF-2Q). "clusters": those of the same cluster of k-means, made anew after each epoch (CMSF-KM).
            "labels": those of the same label (CMSF-sup), by `labels_from`.
        constraint_weight: share of the constrained loss, in [0, 1]; the rest is MSF's. ½ in the published code, 1 with
            labels.
        related: of "previous": how many are near; 5 in the published README, 10 in its code.
        clusters: of "clusters"; 50,000 on ImageNet, that is 26 images in each.
        labels_from: label index, of "labels"; images that are not in it have MSF's loss.
        hidden_dim: of projector and predictor; twice the features' in the published code.
        projection_dim: of their outputs; a quarter of the features' there.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "neighbours": whole(1),
        "bank_size": whole(2),
        "momentum": at_least(0, below=1),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
        "constraint_weight": within(0, 1),
        "related": whole(1),
        "clusters": whole(1),
    }

    latest: Tensor
    older: Tensor
    times: Tensor
    groups: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        weak: nn.Module | None = None,
        neighbours: int = 5,
        bank_size: int = 128_000,
        momentum: float = 0.99,
        hidden_dim: int = 1024,
        projection_dim: int = 128,
        constraint: Constraint = "none",
        constraint_weight: float = 0.5,
        related: int = 5,
        clusters: int = 50_000,
        labels_from: str | None = None,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.weak = view, view if weak is None else weak
        self.neighbours = neighbours
        sizes = (hidden_dim, projection_dim)
        self.projector = projection_mlp(self.encoder.feature_dim, *sizes, output_norm=False)
        self.predictor = projection_mlp(projection_dim, *sizes, output_norm=False)
        self.target = EMA(self._online(), momentum, evaluated=False)
        self.bank = Ring(bank_size, projection_dim)
        self.constraint, self.constraint_weight = constraint, constraint_weight
        self.related, self.clusters, self.labels_from = related, clusters, labels_from
        if (constraint == "labels") != (labels_from is not None):
            raise UslError("model.labels_from: expected with model.constraint labels, and with no other")
        if constraint != "none":
            self.bank_images = Ring(bank_size, 1, torch.int64)
        if constraint in ("previous", "clusters"):
            self.register_buffer("latest", torch.zeros(image.count, projection_dim))
            self.register_buffer("times", torch.zeros(image.count, dtype=torch.long))
        if constraint == "previous":
            self.register_buffer("older", torch.zeros(image.count, projection_dim))
        if constraint in ("clusters", "labels"):
            self.register_buffer("groups", torch.full((image.count,), -1))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the target as a copy of it.

        Raises:
            UslError: the bank is smaller than the batch or than the related, or the batch than the neighbours of its
                first step; there are more clusters than images; the label index is of other images.
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
        if self.constraint == "previous" and self.related > len(self.bank.rows):
            raise UslError(f"model.related: {self.related} of a bank of {len(self.bank.rows)} embeddings; use fewer")
        if self.constraint == "clusters" and self.clusters > len(self.groups):
            raise UslError(f"model.clusters: {self.clusters} for {len(self.groups)} images; use fewer")
        if self.labels_from is not None:
            index = read_labels(self.labels_from, self._data.train_source)
            images, labels = index.for_training()
            self.groups[torch.tensor(images)] = torch.tensor(labels)
        self.target.copy_from(self._online())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (§3; CMSF, Eq. 2)."""
        if self.constraint == "clusters" and self._epoch(batch_idx):  # the first has none before it
            self._cluster()
        v = self.predictor(self._online()(self.view(batch.images, batch.key.fold("view"))))
        with torch.no_grad():
            target = self.target.module(self.weak(batch.images, batch.key.fold("weak")))
            u = F.normalize(target.to(self.bank.rows.dtype), dim=1)
            self.bank.write(gather(u))
            nearest = neighbours_in(self.bank.rows, self.bank.written, u, self.neighbours)
        loss = mean_shift_loss(v, nearest)
        parts: dict[str, Tensor] = {}
        if self.constraint != "none":
            loss, parts = self._constrained(v, u, nearest, batch)
        self.log_training(v, u, loss=loss, **parts)
        return loss

    def _constrained(self, v: Tensor, u: Tensor, nearest: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, where related images are known, and what it is made of.

        Args:
            v: predictions [b, d].
            u: their targets [b, d].
            nearest: the neighbours of these in the whole bank, [b, k, d].
            batch: of this process.
        """
        self._note(gather(u), gather(batch.indices))
        rows = self.bank_images.rows[:, 0]
        there = torch.arange(len(rows), device=rows.device) < self.bank.written
        known, allowed = self._related(batch.indices, rows, there)
        constrained = constrained_loss(v, u, self.bank.rows, allowed, self.neighbours)
        free = constrained_loss(v, u, self.bank.rows, there.expand_as(allowed), self.neighbours)
        share = torch.where(known, self.constraint_weight, 0.0).to(free.dtype)
        loss = torch.lerp(free, constrained, share).mean()
        parts = {"related_known": known.to(free.dtype).mean(), "free_loss": mean_shift_loss(v, nearest)}
        if self._is_logged():  # a bank is sorted for them
            allowed = allowed & known[:, None]
            ranks = gather(ranks_of_allowed(u, self.bank.rows, there, allowed, self.neighbours)).to(free.dtype)
            taken = (ranks > 0).sum().clamp(min=1)
            parts["related_rank"] = ranks.sum() / taken
            parts["related_overlap"] = ((ranks > 0) & (ranks <= self.neighbours)).sum() / taken
        return loss, parts

    @torch.no_grad()
    def _note(self, u: Tensor, indices: Tensor) -> None:
        """Of which images the newest rows of the bank are, and their embeddings, of the global batch."""
        self.bank_images.write(indices[:, None])
        if self.constraint == "previous":
            remember(self.older, indices, self.latest[indices])
        if self.constraint in ("previous", "clusters"):
            remember(self.times, indices, self.times[indices] + 1)
            remember(self.latest, indices, u)

    @torch.no_grad()
    def _related(self, indices: Tensor, rows: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Of which images related ones are known, bool [b], and which rows of the bank are these, bool [b, m].

        Args:
            indices: the images, int64 [b].
            rows: the image of each row of the bank, int64 [m].
            there: which rows have been written, bool [m].
        """
        if self.constraint != "previous":
            own, others = self.groups[indices], self.groups[rows]
            return own >= 0, (own[:, None] == others) & there
        there = there & (self.times[rows] > 1) & self._newest(rows)
        similar = (self.older[indices] @ self.older[rows].T).masked_fill(~there, -torch.inf)
        near, places = similar.topk(self.related, dim=1)
        allowed = torch.zeros_like(similar, dtype=torch.bool).scatter_(1, places, near.isfinite())
        return self.times[indices] > 1, allowed

    def _newest(self, rows: Tensor) -> Tensor:
        """Which rows of the bank are the last of their image, bool [m]: earlier ones would be as near, as it is."""
        size, last = len(rows), self.bank.written - 1
        numbers = last - (last - torch.arange(size, device=rows.device)) % size  # of the writes, below 0 of none
        newest = torch.full_like(self.times, -1).scatter_reduce_(0, rows, numbers, "amax")
        return numbers == newest[rows]

    @torch.no_grad()
    def _cluster(self) -> None:
        """k-means of the images' embeddings in the epoch that has ended; each process does the same."""
        met = (self.times > 0).nonzero()[:, 0]
        clusters = min(self.clusters, len(met))
        if clusters < self.clusters:
            log.info("CMSF: %d clusters instead of %d, of as many images so far", clusters, self.clusters)
        labels, _ = kmeans(self.latest[met], clusters, seed=self._data.seed, iterations=CLUSTER_ITERATIONS)
        self.groups[met] = labels

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the target: both are in any checkpoint made after it."""
        optimizer.step(closure=optimizer_closure)
        self.target.update(self._online())

    def _online(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)
