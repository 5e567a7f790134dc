"""Adapters: a learned network that stays as it is, but for a small part (LoRA: Hu et al., ICLR 2022)."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.data.modules import LabelledData
from usl_lightning.data.passes import batch_that_fits
from usl_lightning.models.ema import EMA
from usl_lightning.models.heads import Bottleneck
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.semisup.semisup_module import StartOptions
from usl_lightning.vectors.logistic import LogisticLearner

log = logging.getLogger(__name__)

PROBED = 1000
"""Labels that the head is fitted to before the first step, at most."""

STRENGTH = 30.0
"""Of that fit: scikit-learn's `C`, the middle one of those that Probe chooses from."""


def low_rank_weight(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """W + scale·B·A, in the shape of W.

    Args:
        weight: W of a linear layer [out, in], or of a convolution [out, in, h, w], which counts as [out, in·h·w].
        a: A, [r, in·h·w].
        b: B, [out, r].
        scale: α / r.
    """
    updated = weight + scale * (b @ a).view(weight.shape)
    return torch.empty_like(weight).copy_(updated)  # laid out as W is: the order of later sums depends on that


def updatable(net: nn.Module, share: float = 1.0) -> list[str]:
    """The names of the weights that get a low-rank update: of linear layers and of convolutions without groups.

    Args:
        net: the network.
        share: of these layers, the last ones in the order of the network; at least one.
    """
    names = [
        f"{name}.weight"
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    return names[len(names) - math.ceil(share * len(names)) :]


class LowRank(nn.Module):
    """Low-rank updates of some weights of a network; at first they are zero.

    Args:
        net: the network, whose weights are copied.
        names: of those weights.
        rank: r, of each update; less where a weight has fewer rows or columns.
        alpha: α; updates are scaled by α / r.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
        super().__init__()
        self.names, self.scales = list(names), list[float]()
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        for number, name in enumerate(names):
            weight = net.get_parameter(name).detach()
            rows, columns = weight.flatten(1).shape
            r = min(rank, rows, columns)
            self.scales.append(alpha / r)
            self.a.append(nn.init.kaiming_uniform_(torch.empty(r, columns), a=math.sqrt(5)))
            self.b.append(torch.zeros(rows, r))
            self.register_buffer(f"base{number}", weight.clone())

    def forward(self) -> dict[str, Tensor]:
        """The updated weights by their names, of 32 bits or more in any precision of the training."""
        with torch.autocast(self.b[0].device.type, enabled=False):
            parts = zip(self.names, self.a, self.b, self.scales, strict=True)
            return {
                name: low_rank_weight(self.get_buffer(f"base{number}"), a, b, scale=scale)
                for number, (name, a, b, scale) in enumerate(parts)
            }

    @torch.no_grad()
    def begin(self, net: nn.Module) -> None:
        """Take other weights of the same network for those that are updated."""
        for number, name in enumerate(self.names):
            self.get_buffer(f"base{number}").copy_(net.get_parameter(name))

    @torch.no_grad()
    def merge(self, net: nn.Module) -> None:
        """Write the updated weights into the network."""
        for name, weight in self().items():
            net.get_parameter(name).copy_(weight)


class Adapter(FixMatch):
    """A published network, or an earlier stage's, whose weights get low-rank updates; or a bottleneck on its features.

    The head begins as logistic regression on the features of the labelled images, so that the updates begin from its
    accuracy (linear probing, then fine-tuning: Kumar et al., ICLR 2022). Batch norm keeps the statistics it has.
    Between steps the network has its updated weights, and so has its moving average: whatever takes the checkpoint
    finds a network like any other.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        optimizer: how the head and the updates are trained.
        backbone: name of the network, see `usl_lightning.models.backbones`.
        tuned: besides the linear layer: `low_rank`, updates of the network's weights; `bottleneck`, a small network
            of two layers beside the features, whose encoder stays as it is (Houlsby et al., ICML 2019).
        rank: r of the updates; of the bottleneck, its width.
        alpha: α; what is learned is scaled by α / r.
        share: of the linear layers and ungrouped convolutions, how many get an update, the last ones; fewer cost less.
        threshold: τ, the least probability of a pseudo-label.
        unlabelled_weight: λ_u, the weight of FixMatch's loss on the unlabelled images; with 0 they are left alone.
        ema_decay: of the moving average that is evaluated.
        start: what the network starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "rank": whole(1),
        "alpha": above(0),
        "share": above(0, up_to=1),
    }

    needs = ("init_from or pretrained",)

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        optimizer: Optimization,
        backbone: str = "tf_efficientnet_lite0",
        tuned: Literal["low_rank", "bottleneck"] = "low_rank",
        rank: int = 4,
        alpha: float = 8.0,
        share: float = 0.5,
        threshold: float = 0.95,
        unlabelled_weight: float = 0.0,
        ema_decay: float = 0.95,
        **start: Unpack[StartOptions],
    ) -> None:
        super().__init__(
            image, weak, strong, optimizer, threshold, unlabelled_weight,
            joint_pass=False, backbone=backbone, ema_decay=ema_decay, **start,
        )  # fmt: skip
        encoder = self.model.encoder.requires_grad_(False)
        self.low_rank: LowRank | None = None
        if tuned == "low_rank":
            names = updatable(encoder.net, share)
            if not names:
                raise UslError(f"model.backbone: '{backbone}' has no layer to update; use model.tuned bottleneck")
            self.low_rank = LowRank(encoder.net, names, rank, alpha)
            least = min(len(a) for a in self.low_rank.a)
            if least < rank:
                log.info("low-rank updates: rank %d instead of %d in the smallest layer", least, rank)
                self.lowered["rank"] = least
        else:
            self.model.head = nn.Sequential(Bottleneck(encoder.feature_dim, rank, alpha), self.model.head)
        self.ema = EMA(self.model, ema_decay)
        self.train()

    def train(self, mode: bool = True) -> "Adapter":
        """Training mode; the network stays in evaluation mode."""
        super().train(mode)
        self.model.encoder.eval()
        return self

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder and logistic regression; a checkpoint being resumed is loaded later and wins.

        Raises:
            UslError: the network has learned nothing yet.
        """
        if stage == "fit" and self.init_from is None and not self.pretrained:
            raise UslError(
                "model.init_from: expected a checkpoint of an earlier stage, or model.pretrained true with a published "
                "network: an adapter is of a network that has learned"
            )
        super().setup(stage)
        if stage == "fit":
            if self.low_rank is not None:
                self.low_rank.begin(self.model.encoder.net)
            self._begin_head(self.trainer.datamodule)  # type: ignore[attr-defined]
            self.ema.copy_from(self.model)

    @torch.no_grad()
    def _begin_head(self, data: LabelledData) -> None:
        """Fit the linear layer to the features of the labelled images."""
        rows, labels = (torch.tensor(column)[:PROBED] for column in data.index.for_training())
        encoder, device = self.model.encoder, self.trainer.strategy.root_device
        encoder.to(device)
        parts = torch.split(rows, batch_that_fits(data.train_source, device))
        features = torch.cat([encoder(data.train_source.read(part).to(device)) for part in parts]).float()
        places = torch.arange(len(rows), device=device)
        found = LogisticLearner(features, places, labels.to(device), self.image.num_classes, [STRENGTH]).head(0)
        linear = self.model.head[-1] if isinstance(self.model.head, nn.Sequential) else self.model.head
        linear.get_parameter("weight").copy_(found.weight)
        linear.get_parameter("bias").copy_(found.bias.nan_to_num(neginf=-10.0))  # of a class without a label

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, which the network and its moving average take over: all of it is in a checkpoint."""
        optimizer.step(closure=optimizer_closure)
        if self.low_rank is not None:
            self.low_rank.merge(self.model.encoder.net)
        self.ema.update(self.model)

    def updated(self, images: Tensor) -> Tensor:
        """Logits [b, classes] of 32 bits or more, through which gradients reach what is trained."""
        weights = {} if self.low_rank is None else self.low_rank()
        named = {f"encoder.net.{name}": weight for name, weight in weights.items()}
        logits: Tensor = functional_call(self.model, named, (images,))
        return full_precision(logits)

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch."""
        labelled, unlabelled = batch
        views = self.weak(labelled.images, labelled.key.fold("weak"))
        if not self.unlabelled_weight:
            loss = F.cross_entropy(self.updated(views), labelled.labels)
            self.log_training(loss=loss)
            return loss
        strong = self.strong(unlabelled.images, unlabelled.key.fold("strong"))
        x, strong = torch.split(self.updated(torch.cat([views, strong])), [len(views), len(strong)])
        with torch.no_grad():  # no batch norm minds which images share a pass
            weak = full_precision(self.model(self.weak(unlabelled.images, unlabelled.key.fold("weak"))))
        return self.loss(x, labelled.labels, self.guided(weak, unlabelled.indices), strong)
