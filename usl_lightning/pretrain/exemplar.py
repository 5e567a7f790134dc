"""Exemplar-CNN: Discriminative Unsupervised Feature Learning (Dosovitskiy et al., NeurIPS 2014)."""

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views.patches import eventful_patches
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


class Exemplar(PretrainModule):
    """Each image is a class of its own, whose examples are its transformations.

    The classifier grows with the images: for tens of thousands of them, as in the paper. NPID is what came of it.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image.
        optimizer: how the weights are updated.
        patch: side in pixels of the piece of each image that stands for it, at a place with large gradients, the same
            throughout the training: 32 of 96 on STL-10. None: the whole image.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {"patch": whole(1)}

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        patch: int | None = None,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.patch = view, patch
        self.head = nn.Linear(self.encoder.feature_dim, image.count)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch: cross-entropy of which image it is (§2.2)."""
        seeds = batch.images
        if self.patch is not None:
            fixed = Key.of(self._data.seed, "seed patches", slots=batch.indices)
            seeds = eventful_patches(seeds, fixed, size=self.patch)
        logits = full_precision(self.head(self.encoder(self.view(seeds, batch.key.fold("view")))))
        loss = F.cross_entropy(logits, batch.indices)
        self.log_training(loss=loss, images_told=(logits.argmax(1) == batch.indices).float().mean())
        return loss
