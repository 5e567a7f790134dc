"""NPID: instance discrimination with a memory bank (Wu, Xiong, Yu and Lin, CVPR 2018)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole, within
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.models.instances import bank_loss, check_negatives, move_rows
from usl_lightning.models.local_clusters import check_clusters, group_discrimination
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule


class NPID(PretrainModule):
    """Each image is a class of its own, whose weights are its embedding of the last time it was met.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image.
        optimizer: how the weights are updated.
        temperature: τ of the loss; 0.1 on CIFAR, 0.07 on ImageNet.
        negatives: m rows drawn at random for each image (noise-contrastive estimation; 4,096 on ImageNet); null: all,
            the softmax itself.
        momentum: share of a row that is kept when its image is met, in [0, 1].
        projection_dim: of the embedding, a linear layer on the features.
        cld_weight: λ of CLD (`group_discrimination`), on a linear layer of its own and two views of each image; 0:
            none.
        cld_clusters: K of each view's clusters; at most the global batch.
        cld_temperature: T of their loss.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "temperature": above(0),
        "negatives": whole(1),
        "momentum": within(0, 1),
        "projection_dim": whole(1),
        "cld_weight": at_least(0),
        "cld_clusters": whole(1),
        "cld_temperature": above(0),
    }

    bank: Tensor
    log_z: Tensor
    estimated: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        temperature: float = 0.1,
        negatives: int | None = None,
        momentum: float = 0.5,
        projection_dim: int = 128,
        cld_weight: float = 0.0,
        cld_clusters: int = 128,
        cld_temperature: float = 0.2,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view = view
        self.temperature, self.negatives, self.momentum = temperature, negatives, momentum
        self.projector = nn.Linear(self.encoder.feature_dim, projection_dim)
        self.cld_weight, self.cld_clusters, self.cld_temperature = cld_weight, cld_clusters, cld_temperature
        self.groups = nn.Linear(self.encoder.feature_dim, projection_dim) if cld_weight else None
        self.register_buffer("bank", F.normalize(torch.rand(image.count, projection_dim) - 0.5, dim=1))
        self.register_buffer("log_z", torch.tensor(0.0))
        self.register_buffer("estimated", torch.tensor(False))

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder.

        Raises:
            UslError: more negatives than images, or more of CLD's clusters than the batch has.
        """
        super().setup(stage)
        if stage == "fit" and self.cld_weight:
            check_clusters(self.cld_clusters, self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]
        if stage == "fit":
            check_negatives(self.negatives, len(self.bank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch, then its rows of the bank; with CLD of two views, the first one's."""
        keys = [batch.key.fold("view"), *([batch.key.fold("view", 1)] if self.groups is not None else [])]
        features = [self.encoder(self.view(batch.images, key)) for key in keys]
        losses = []
        embeddings = []
        for each in features:
            projected = self.projector(each)
            with torch.autocast(projected.device.type, enabled=False):
                v = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
                m, t = self.negatives, self.temperature
                losses.append(bank_loss(v, self.bank, self, batch, negatives=m, temperature=t))
                embeddings.append(v)
        if self.groups is None:
            loss, parts = losses[0], {}
        else:
            one, other = (self.groups(each) for each in features)
            clusters, temperature = self.cld_clusters, self.cld_temperature
            parts = {
                "instance_loss": (losses[0] + losses[1]) / 2,
                "group_loss": group_discrimination(one, other, clusters=clusters, temperature=temperature),
            }
            loss = parts["instance_loss"] + self.cld_weight * parts["group_loss"]
        move_rows(self.bank, gather(embeddings[0].detach()), gather(batch.indices), self.momentum)
        self.log_training(*embeddings, loss=loss, **parts)
        return loss
