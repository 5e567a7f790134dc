"""The cluster heads of USL-T (Wang, Lian, Yu, ECCV 2022, section 2.3 and appendix 6.3.2)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranged, Ranges, above, at_least, check, whole, within
from usl_lightning.compute.device import chunks, full_precision
from usl_lightning.models.encoder import as_written, read_checkpoint

ENTRY = "cluster_heads"
"""Key of a checkpoint under which `heads_entry` is stored."""


class ClusterHeads(Ranged, nn.Module):
    """Features -> logits of several clusterings, each from a linear layer of its own.

    Args:
        inputs: dimension of the features.
        clusters: C of each head.
        heads: H.
        cosine_scale: if set, a head's logits are scale · cosine(feature, centroid), without bias (40 on ImageNet).
    """

    ranges: ClassVar[Ranges] = {"inputs": whole(1), "clusters": whole(1), "heads": whole(1), "cosine_scale": above(0)}

    def __init__(self, inputs: int, clusters: int, heads: int, cosine_scale: float | None = None) -> None:
        super().__init__()
        self.inputs, self.clusters, self.cosine_scale = inputs, clusters, cosine_scale
        self.layers = nn.ModuleList(nn.Linear(inputs, clusters, bias=cosine_scale is None) for _ in range(heads))

    def __len__(self) -> int:
        return len(self.layers)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [b, H, C] of features [b, d], float32 at least, in any precision: cosines of 8 bits are too few."""
        with torch.autocast(features.device.type, enabled=False):
            x = full_precision(features)
            if self.cosine_scale is None:
                return torch.stack([F.linear(x, _as(x, own.weight), _as(x, own.bias)) for own in self.layers], 1)
            x = F.normalize(x, dim=1)
            cosines = [F.linear(x, F.normalize(_as(x, own.weight), dim=1)) for own in self.layers]
            return self.cosine_scale * torch.stack(cosines, 1)

    @torch.no_grad()
    def start_from(self, features: Tensor) -> None:
        """Put the centroids on features of samples, [H, C, d]."""
        for layer, centroids in zip(self.layers, features, strict=True):
            layer.weight.copy_(centroids)  # type: ignore[operator, union-attr]


def _as(x: Tensor, parameter: Any) -> Tensor:
    """A parameter in the precision of x."""
    return parameter.to(x.dtype)


def heads_entry(heads: ClusterHeads, prefix: str) -> dict[str, Any]:
    """What a checkpoint says of its heads: how to rebuild them, and where in the state dict their weights are."""
    spec = {"inputs": heads.inputs, "clusters": heads.clusters, "heads": len(heads), "cosine_scale": heads.cosine_scale}
    return {"spec": spec, "prefix": prefix}


def load_heads(path: str | Path) -> ClusterHeads:
    """The heads stored in a checkpoint of USL-T's training, in evaluation mode.

    Raises:
        UslError: the file is missing, damaged, or holds no heads.
    """
    checkpoint = read_checkpoint(path)
    entry = checkpoint.get(ENTRY)
    if not isinstance(entry, dict):
        raise UslError(
            f"model.init_from: {path} holds no cluster heads; expected a checkpoint of USL-T's training "
            "(usl fit --config digits_uslt.yaml)"
        )
    with as_written(path):
        prefix = entry["prefix"]
        state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
        spec = entry["spec"]
        if spec["heads"] > len(state) or list(state["layers.0.weight"].shape) != [spec["clusters"], spec["inputs"]]:
            raise ValueError(f"its weights are not those of {spec}")
        heads = ClusterHeads(**spec)
        heads.load_state_dict(state)
    return heads.eval()


@torch.no_grad()
def cluster_confidence(features: Tensor, heads: ClusterHeads) -> tuple[Tensor, Tensor]:
    """The cluster of each image in the first head, int64 [n], and its largest probability in each head, [n, H].

    Args:
        features: [n, d].
        heads: H heads of C clusters. Memory: that of the results, and 512 MB at most.
    """
    clusters = torch.empty(len(features), dtype=torch.int64, device=features.device)
    confidence = torch.empty(len(features), len(heads), device=features.device)
    for rows in chunks(len(features), 16 * len(heads) * heads.clusters, features.device):
        probability, cluster = heads(features[rows]).softmax(2).max(2)
        clusters[rows], confidence[rows] = cluster[:, 0], probability
    return clusters, confidence


@dataclass(frozen=True)
class Reassignment:
    """When and how nearly empty clusters are moved onto the largest ones (appendix 6.3.2, and its code).

    A cluster's size is the number of images of the data set in it, estimated by a moving average over batches. At
    a look, the r-th smallest cluster, if it is below `smallest`, and the r-th largest, if it is above `largest`,
    become the two halves of the larger one: its centroid plus and minus a perturbation. The published code moves
    one such pair at a look.

    Attributes:
        smallest, largest: bounds of the sizes, in images.
        after: steps before the first look.
        every: steps between looks.
        momentum: weight of the old sizes in their moving average.
        perturbation: standard deviation of the perturbation over that of a centroid's entries. The published 1e-7
            of the entries' unit is lost in half precision.
    """

    ranges: ClassVar[Ranges] = {
        "smallest": at_least(0),
        "largest": at_least(0),
        "after": whole(0),
        "every": whole(1),
        "momentum": within(0, 1),
        "perturbation": above(0),
    }

    smallest: float = 100.0
    largest: float = 1000.0
    after: int = 1250
    every: int = 1
    momentum: float = 0.9
    perturbation: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check(type(self), vars(self))


def update_sizes(sizes: Tensor, clusters: Tensor, counts: Tensor, *, images: int, momentum: float) -> Tensor:
    """The moving average of cluster sizes, [C], after one batch; unchanged if nothing in it counts.

    Args:
        sizes: [C], before.
        clusters: int64 [b], of the global batch.
        counts: bool [b], which of them count.
        images: of the data set, to which the batch is scaled.
        momentum: weight of the old sizes, in [0, 1].
    """
    found = torch.zeros_like(sizes).index_add_(0, clusters, counts.to(sizes.dtype))
    total = found.sum()
    new = momentum * sizes + (1 - momentum) * found / total.clamp(min=1) * images
    return torch.where(total > 0, new, sizes)


@torch.no_grad()
def reassign(layer: nn.Linear, sizes: Tensor, noise: Tensor, rule: Reassignment) -> None:
    """Move the nearly empty clusters of one head onto its largest, in place; see `Reassignment`.

    Args:
        layer: its weight [C, d] holds the centroids.
        sizes: [C]; both halves of a cluster get half of its size.
        noise: [C // 2, d], of mean 0 and variance 1; row r is for the r-th pair.
        rule: bounds and size of the perturbation.
    """
    order = sizes.argsort(stable=True)
    pairs = len(sizes) // 2
    small, large = order[:pairs], order.flip(0)[:pairs]
    moves = (sizes[small] < rule.smallest) & (sizes[large] > rule.largest)
    centroids = layer.weight[large]
    shift = moves[:, None] * noise * rule.perturbation * centroids.square().mean(1, keepdim=True).sqrt()
    layer.weight[small] = torch.where(moves[:, None], centroids + shift, layer.weight[small])
    layer.weight[large] = centroids - shift
    if layer.bias is not None:
        layer.bias[small] = torch.where(moves, layer.bias[large], layer.bias[small])
    halves = sizes[large] / 2
    sizes[small] = torch.where(moves, halves, sizes[small])
    sizes[large] = torch.where(moves, halves, sizes[large])
