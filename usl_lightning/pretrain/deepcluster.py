"""DeepCluster v2 (Caron et al., NeurIPS 2020, "SwAV", §4 and the published code), after DeepCluster (ECCV 2018)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.compute.distributed import gather, gather_uneven
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import permutation
from usl_lightning.data.views.crops import multi_crop
from usl_lightning.models.guesses import remember
from usl_lightning.models.heads import projection_mlp
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

LARGE = 2
"""Views whose embeddings are kept and clustered."""


def spherical_kmeans(embeddings: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """k-means by cosine, from given directions: the cluster of each row, int64 [n], and unit means, [K, d].

    Means are those of the labels returned. A cluster that loses all rows keeps its direction.

    Args:
        embeddings: unit rows [n, d].
        start: unit rows [K, d].
        iterations: at least 1; 10 in the published code.
    """
    centroids = start
    labels = torch.zeros(len(embeddings), dtype=torch.long, device=embeddings.device)
    for _ in range(iterations):
        labels = (embeddings @ centroids.T).argmax(1)
        sums = torch.zeros_like(centroids).index_add_(0, labels, embeddings)
        taken = torch.bincount(labels, minlength=len(centroids)) > 0
        centroids = torch.where(taken[:, None], F.normalize(sums, dim=1), centroids)
    return labels, centroids


def cluster_loss(z: Tensor, labels: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of the scores of every view with the image's cluster, averaged over heads, views and images.

    Args:
        z: unit embeddings of the views, view by view, [v·n, d].
        labels: of each head, int64 [H, n].
        prototypes: of each head, unit rows [H, K, d]; no gradient flows into them.
        temperature: above 0; 0.1 in the published code.
    """
    views = len(z) // labels.shape[1]
    losses = [
        F.cross_entropy(z @ own.detach().T / temperature, each.repeat(views))
        for own, each in zip(prototypes, labels, strict=True)
    ]
    return torch.stack(losses).mean()


class DeepCluster(PretrainModule):
    """An image is told which cluster of the epoch before it is in, from each of its views.

    Each epoch begins with k-means of the embeddings that the images had in the last one, once for each head, on the
    first and the second view in turn; the centroids are the classifier. For the first epoch they come from a pass over
    all images, in evaluation mode.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image; called twice with independent keys.
        optimizer: how the weights are updated.
        small_view: draws the small views, of a size below that of `view`.
        small_views: how many of each image; 6 in the published code.
        heads: clusterings side by side; 3 in the published code.
        clusters: K of each; 3,000 there, and at most the images there are.
        temperature: of the scores.
        iterations: of k-means.
        hidden_dim, projection_dim: sizes of the 2-layer projection MLP, whose output has no batch norm.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    up_to_images = ("clusters",)
    ranges: ClassVar[Ranges] = {
        "small_views": whole(0),
        "heads": whole(1),
        "clusters": whole(2),
        "temperature": above(0),
        "iterations": whole(1),
        "hidden_dim": whole(1),
        "projection_dim": whole(1),
    }

    memory: Tensor
    labels: Tensor
    prototypes: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        small_view: nn.Module | None = None,
        small_views: int = 0,
        heads: int = 3,
        clusters: int = 3000,
        temperature: float = 0.1,
        iterations: int = 10,
        hidden_dim: int = 2048,
        projection_dim: int = 128,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.small_view, self.small_views = view, view if small_view is None else small_view, small_views
        self.temperature, self.iterations = temperature, iterations
        self.projector = projection_mlp(self.encoder.feature_dim, hidden_dim, projection_dim, output_norm=False)
        self.register_buffer("memory", torch.zeros(LARGE, image.count, projection_dim))
        self.register_buffer("labels", torch.zeros(heads, image.count, dtype=torch.long))
        self.register_buffer("prototypes", torch.zeros(heads, clusters, projection_dim))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder.

        Raises:
            UslError: more clusters than images.
        """
        super().setup(stage)
        count, clusters = self.memory.shape[1], self.prototypes.shape[1]
        if stage == "fit" and clusters > count:
            raise UslError(f"model.clusters: {clusters} for {count} images; use at most {count}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """New clusters when an epoch begins, and the loss of one global batch."""
        epoch = self._epoch(batch_idx)
        if epoch is not None:
            self._cluster(epoch)
        crops = multi_crop(batch.images, batch.key, [self.view] * LARGE, self.small_view, self.small_views)
        views = [self._embedded(size) for size in crops]
        with torch.autocast(batch.images.device.type, enabled=False):
            z, labels = torch.cat(views), self.labels[:, batch.indices]
            loss = cluster_loss(z, labels, self.prototypes.to(z.dtype), temperature=self.temperature)
        large = torch.split(views[0], len(batch))
        indices = gather(batch.indices)
        for kept, own in zip(self.memory, large, strict=True):
            remember(kept, indices, gather(own.detach()))
        self.log_training(*large, loss=loss)
        return loss

    @torch.no_grad()
    def _cluster(self, epoch: int) -> None:
        """k-means for each head; every process does the same, from the same embeddings."""
        if epoch == 0:
            self._fill_memory()
        for head, own in enumerate(self.labels):
            embeddings = self.memory[head % LARGE]
            order = permutation(len(embeddings), self._data.seed, "clusters", epoch, head).to(embeddings.device)
            start = embeddings[order[: self.prototypes.shape[1]]]
            labels, centroids = spherical_kmeans(embeddings, start, self.iterations)
            own.copy_(labels)
            self.prototypes[head].copy_(centroids)

    def _fill_memory(self) -> None:
        """The embeddings of all images; of each process those of its share."""

        def views(batch: Batch) -> tuple[Tensor, ...]:
            drawn = [self.view(batch.images, batch.key.fold("first", number)) for number in range(LARGE)]
            return tuple(map(self._embedded, drawn))

        for kept, own in zip(self.memory, self._of_all_images(views), strict=True):
            kept.copy_(gather_uneven(own))

    def _embedded(self, images: Tensor) -> Tensor:
        """Unit embeddings [n, d] of views, in float32 or better."""
        projected = self.projector(self.encoder(images))
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
