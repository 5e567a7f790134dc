"""DeepCluster (Caron, Bojanowski, Joulin and Douze, ECCV 2018), the first version; `deepcluster` is the second."""

import logging
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather_uneven
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import derive_seed
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.whitening import whitened

log = logging.getLogger(__name__)

FIRST_STD = 0.01
"""Of a new classifier's weights, in the published code."""


def cluster_weights(labels: Tensor, clusters: int) -> Tensor:
    """What an image of each cluster counts, so that all clusters count alike (§3.3): N/(K'·size), 0 of an empty one.

    K' of the clusters have images; over all images the mean is 1.

    Args:
        labels: int64 [N], in {0, …, clusters - 1}.
        clusters: K.

    Returns:
        float32 [K].
    """
    sizes = torch.bincount(labels, minlength=clusters)
    taken = sizes > 0
    return torch.where(taken, len(labels) / (taken.sum() * sizes.clamp(min=1)), 0.0)


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with the clusters (Eq. 1), each image's times its cluster's weight; a mean over the images.

    Args:
        logits: [n, K].
        labels: int64 [n].
        weights: [K].
    """
    losses = F.cross_entropy(full_precision(logits), labels, reduction="none")
    return (losses * weights[labels]).mean()


class DeepClusterV1(PretrainModule):
    """Alternates between k-means of all images' features and learning, for an epoch, which cluster an image is in.

    Each epoch begins with a pass over all images, as they are and in evaluation mode; k-means of the features'
    principal components, whitened and of length 1; and a new classifier.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image.
        optimizer: how the weights are updated.
        clusters: K; 10,000 on ImageNet, and at most the images there are.
        components: of the features, or all of them if they have fewer; 256 in the paper.
        iterations: of k-means; 20 in the published code.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    up_to_images = ("clusters",)
    ranges: ClassVar[Ranges] = {"clusters": whole(2), "components": whole(1), "iterations": whole(1)}

    labels: Tensor
    weights: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        clusters: int = 10_000,
        components: int = 256,
        iterations: int = 20,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.components, self.iterations = view, components, iterations
        self.head = nn.Linear(self.encoder.feature_dim, clusters)
        self.register_buffer("labels", torch.zeros(image.count, dtype=torch.long))
        self.register_buffer("weights", torch.zeros(clusters))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder.

        Raises:
            UslError: more clusters than images, or as many components.
        """
        super().setup(stage)
        count, clusters = len(self.labels), len(self.weights)
        if stage == "fit" and clusters > count:
            raise UslError(f"model.clusters: {clusters} for {count} images; use at most {count}")
        most = min(self.components, self.encoder.feature_dim)
        if stage == "fit" and most < self.components:
            log.info("DeepCluster: %d components instead of %d, of as many features", most, self.components)
            self.lowered["components"] = most
        if stage == "fit" and most > count - 2:
            raise UslError(
                f"model.components: {self.components} for {count} images, which would all be equally far from each "
                "other; use far fewer"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """New clusters when an epoch begins, and the loss of one global batch."""
        epoch = self._epoch(batch_idx)
        if epoch is not None:
            self._cluster(derive_seed(self._data.seed, "clusters", epoch))
        logits = self.head(self.encoder(self.view(batch.images, batch.key.fold("view"))))
        labels = self.labels[batch.indices]
        loss = weighted_loss(logits, labels, self.weights)
        self.log_training(loss=loss, clusters_told=(logits.argmax(1) == labels).float().mean())
        return loss

    @torch.no_grad()
    def _cluster(self, seed: int) -> None:
        """New labels; each process those of its share."""
        (features,) = self._of_all_images(lambda batch: (full_precision(self.encoder(batch.images)),))
        points = whitened(features, self.components, distributed=True)
        clusters = len(self.weights)
        labels, _ = kmeans(points, clusters, seed=seed, iterations=self.iterations, distributed=True)
        self.labels.copy_(gather_uneven(labels))
        self.weights.copy_(cluster_weights(self.labels, clusters))
        self._begin_classifier(seed)

    def _begin_classifier(self, seed: int) -> None:
        """New weights, and an optimizer that has not met them."""
        random = torch.Generator().manual_seed(seed)
        self.head.weight.copy_(FIRST_STD * torch.randn(self.head.weight.shape, generator=random))
        self.head.bias.zero_()
        for optimizer in self.trainer.optimizers:
            for parameter in self.head.parameters():
                for value in optimizer.state.get(parameter, {}).values():
                    value.zero_()
