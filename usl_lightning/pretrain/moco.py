"""MoCo: Momentum Contrast (He et al., CVPR 2020), with the head and views of MoCo v2 (Chen et al., 2020b)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.distributed import gather, world_size
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.models.ema import EMA
from usl_lightning.models.heads import projection_mlp
from usl_lightning.models.local_clusters import check_clusters, group_discrimination
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


def info_nce(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of telling a query's own key from those of the queue (MoCo, Eq. 1), averaged over the queries.

    Args:
        q: queries [n, d].
        k: keys [n, d]; row i is the positive of query i. Gradients flow into it unless it is detached.
        queue: negatives [K, d], the same for all queries. No row of the three needs to be normalised.
        temperature: above 0; 0.07 in MoCo, 0.2 in MoCo v2.

    Returns:
        The loss, a scalar in float32 or better.
    """
    with torch.autocast(q.device.type, enabled=False):  # logits of 8 bits would blur the negatives
        dtype = torch.promote_types(q.dtype, torch.float32)
        q, k, queue = (F.normalize(x.to(dtype), dim=1) for x in (q, k, queue))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


class MoCo(PretrainModule):
    """A query finds its key, made by a slowly moving encoder, among those of the last batches.

    Batch norm must not tell which key was made in the same batch as the query. The global batch is therefore
    normalised in groups, and keys are shuffled so that theirs are others than those of the queries (MoCo, §3.3).
    The groups are spread over the processes, so the number of processes changes nothing in the loss.

    The running statistics that evaluation uses are updated once a group: at batch norm's momentum of 0.1 a step moves
    them by 1 − 0.9^groups (by 0.57 for 8). Each process updates them from its own groups; those of the first are kept.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image; called twice with independent keys.
        optimizer: how the weights are updated.
        temperature: of the loss.
        queue_size: K, keys kept as negatives; a multiple of the global batch.
        momentum: of the key encoder, in [0, 1); 0.999 on ImageNet, 0.99 on CIFAR.
        shuffle_groups: groups of the global batch that share batch-norm statistics, at least one a process; 8 in the
            paper. null, for networks without batch norm: the batch is neither divided nor shuffled.
        eman: the key encoder's batch-norm statistics are the slow average of the queries', as its weights are (EMAN:
            Cai et al., CVPR 2021); batch norm then cannot tell keys, and `shuffle_groups` has to be null.
        hidden_dim, projection_dim: sizes of the head, which has no batch norm.
        projection_layers: of the head: 2 in MoCo v2, 1 in MoCo (then with a temperature of 0.07).
        cld_weight: λ of CLD (`group_discrimination`), on a linear layer of its own and two queries of each image; 0:
            none.
        cld_clusters: K of the clusters of each; at most the global batch.
        cld_temperature: T of their loss.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "temperature": above(0),
        "queue_size": whole(1),
        "momentum": at_least(0, below=1),
        "shuffle_groups": whole(1),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
        "projection_layers": whole(1),
        "cld_weight": at_least(0),
        "cld_clusters": whole(1),
        "cld_temperature": above(0),
    }

    sync_batch_norm = False

    queue: Tensor
    queue_end: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        temperature: float = 0.2,
        queue_size: int = 65536,
        momentum: float = 0.999,
        shuffle_groups: int | None = 8,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
        eman: bool = False,
        projection_layers: int = 2,
        cld_weight: float = 0.0,
        cld_clusters: int = 128,
        cld_temperature: float = 0.2,
        **network: Unpack[NetworkOptions],
    ) -> None:
        if eman and shuffle_groups is not None:
            raise UslError(f"model.shuffle_groups: {shuffle_groups} with model.eman, which needs no groups; use null")
        super().__init__(image, optimizer, **network)
        self.view = view
        self.temperature, self.shuffle_groups = temperature, shuffle_groups
        self.sync_batch_norm = eman
        self.cld_weight, self.cld_clusters, self.cld_temperature = cld_weight, cld_clusters, cld_temperature
        sizes = (self.encoder.feature_dim, hidden_dim, projection_dim)
        self.projector = projection_mlp(*sizes, layers=projection_layers, norm=False)
        self.groups = nn.Linear(self.encoder.feature_dim, projection_dim) if cld_weight else None
        self.key_encoder = EMA(self._query_encoder(), momentum, evaluated=eman, average_buffers=eman)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, projection_dim), dim=1))
        self.register_buffer("queue_end", torch.zeros((), dtype=torch.long))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the key encoder as its copy.

        Raises:
            UslError: the queue is no multiple of the global batch, the batch cannot be divided into the groups, or has
                fewer images than CLD has clusters.
        """
        super().setup(stage)
        if stage == "fit":
            batch_size: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
            _check_queue(len(self.queue), batch_size)
            if self.cld_weight:
                check_clusters(self.cld_clusters, batch_size)
            if self.shuffle_groups is not None:
                _check_groups(self.shuffle_groups, batch_size, self.trainer.world_size)
            self.key_encoder.copy_from(self._query_encoder())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # the queries' encoder has moved since
            self.key_encoder.update(self._query_encoder())
        view = self.view(batch.images, batch.key.fold("query"))
        if self.groups is None:
            q = self._in_groups(self._query_encoder(), view)
        else:
            features = self._in_groups(self.encoder, view)
            q = self.projector(features)
        keys = self._keys(batch)
        k = keys[batch.key.slots]
        loss = info_nce(q, k, self.queue, temperature=self.temperature)
        parts: dict[str, Tensor] = {}
        if self.groups is not None:
            loss, parts = self._with_groups(loss, features, k, batch)
        self._enqueue(keys)
        self.log_training(q, k, loss=loss, **parts)
        return loss

    def _with_groups(self, loss: Tensor, features: Tensor, k: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of two queries of each image and of CLD on them, and its parts.

        Args:
            loss: that of the first query.
            features: of the first query's view, [b, d].
            k: keys, [b, d].
            batch: of this process.
        """
        others = self._in_groups(self.encoder, self.view(batch.images, batch.key.fold("query", 1)))
        other = info_nce(self.projector(others), k, self.queue, temperature=self.temperature)
        one, two = (self.groups(each) for each in (features, others))  # type: ignore[misc]
        clusters, temperature = self.cld_clusters, self.cld_temperature
        parts = {
            "instance_loss": (loss + other) / 2,
            "group_loss": group_discrimination(one, two, clusters=clusters, temperature=temperature),
        }
        return parts["instance_loss"] + self.cld_weight * parts["group_loss"], parts

    def _query_encoder(self) -> nn.Sequential:
        return nn.Sequential(self.encoder, self.projector)

    @torch.no_grad()
    def _keys(self, batch: Batch) -> Tensor:
        """Normalised keys of the global batch, in the order of its slots: [B, d], the same on every process."""
        network, key = self.key_encoder.module, batch.key.fold("key")
        if self.shuffle_groups is None:
            return gather(self._normalised(network(self.view(batch.images, key))))
        order = gather(batch.key.fold("shuffle").bits(1)[:, 0]).argsort()
        slots = order[batch.key.slots]  # whose keys this process makes
        views = self.view(gather(batch.images)[slots], Key(key.base, slots))
        return gather(self._normalised(self._in_groups(network, views)))[order.argsort()]

    def _normalised(self, keys: Tensor) -> Tensor:
        return F.normalize(keys.to(self.queue.dtype), dim=1)

    def _in_groups(self, network: nn.Module, images: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, d], each group in a pass of its own."""
        if self.shuffle_groups is None:
            return network(images)
        return torch.cat([network(group) for group in images.chunk(self.shuffle_groups // world_size())])

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Let the keys of the global batch, [B, d], take the place of the oldest."""
        places = (self.queue_end + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, places, keys)
        self.queue_end.add_(len(keys)).remainder_(len(self.queue))


def _check_queue(size: int, batch_size: int) -> None:
    below = size // batch_size * batch_size
    if size % batch_size:
        sizes = f"{below} or {below + batch_size}" if below else f"{batch_size}"
        raise UslError(
            f"model.queue_size: {size} keys are not a whole number of global batches of {batch_size} "
            f"(data.batch_size); use {sizes}"
        )


def _check_groups(groups: int, batch_size: int, processes: int) -> None:
    possible = [g for g in range(processes, batch_size // 2 + 1, processes) if batch_size % g == 0]
    if groups not in possible:
        nearest = min(possible, key=lambda g: abs(g - groups))
        raise UslError(
            f"model.shuffle_groups: {batch_size} images (data.batch_size) over {processes} "
            f"process{'es' if processes > 1 else ''} cannot be divided into {groups} equal groups of 2 or more; "
            f"use {nearest}, or null for a network without batch norm"
        )
