"""USL-T's selection: the most representative image of each learned cluster (Wang, Lian, Yu, ECCV 2022, section 2.3)."""

import logging
from typing import Any, Literal

import torch
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.errors import UslError
from usl_lightning.selection.base import Selector
from usl_lightning.selection.density import limit_k, limited_density
from usl_lightning.selection.geometry import check_budget, check_features, unit_rows
from usl_lightning.selection.picks import best_of_each, fill_to_budget
from usl_lightning.selection.usl import SMALLEST
from usl_lightning.selection.uslt_heads import ClusterHeads, cluster_confidence, load_heads

log = logging.getLogger(__name__)

Representative = Literal["confidence", "mean_confidence", "density"]


def select_uslt(
    features: Tensor,
    heads: ClusterHeads,
    budget: int,
    *,
    representative: Representative = "mean_confidence",
    k: int = 20,
) -> Tensor:
    """The `budget` images worth labelling: one of each cluster of the first head.

    On ImageNet the paper then gives an image's label to the 20 densest of its cluster as pseudo-labels (appendix
    6.12), which take labels that are not there yet when images are chosen: that step is left to training.

    Args:
        features: [n, d] of the encoder that was trained with the heads, CPU or CUDA.
        heads: the trained heads, on the same device.
        budget: how many, from 1 to n. Of more non-empty clusters than that, the largest are taken.
        representative: which image of a cluster: the one of highest probability in the first head ("confidence",
            CIFAR-100), averaged over all heads ("mean_confidence", CIFAR-10), or the densest ("density", ImageNet).
        k: neighbours in the density, see `limited_density`.

    Returns:
        int64 [budget], distinct, in cluster order; then those that stand in for empty clusters: the best remaining
        images by the same score. Ties: the lower index.

    Raises:
        UslError: budget out of range, features not finite, an unknown representative.
    """
    check_budget(budget, len(features))
    x = check_features(features)
    clusters, confidence = cluster_confidence(x, heads)
    if representative == "confidence":
        scores = confidence[:, 0]
    elif representative == "mean_confidence":
        scores = confidence.mean(1)
    elif representative == "density":
        x = unit_rows(x)
        scores = 1 / limited_density(x, k).clamp(min=SMALLEST)
    else:
        raise UslError(f"representative {representative!r}: expected confidence, mean_confidence or density")
    sizes = torch.bincount(clusters, minlength=heads.clusters)
    log.info("clusters: %d of %d hold images", int((sizes > 0).sum()), heads.clusters)
    return best_of_clusters(clusters, scores, budget)


def best_of_clusters(clusters: Tensor, scores: Tensor, budget: int) -> Tensor:
    """The best image of each of the `budget` largest clusters, filled up with the best others.

    Args:
        clusters: integers [n], ≥ 0; not every number need occur.
        scores: [n], finite.
        budget: from 1 to n.

    Returns:
        int64 [budget], distinct, in cluster order. Ties: the lower cluster, the lower index.
    """
    _, labels, sizes = torch.unique(clusters, return_inverse=True, return_counts=True)
    picks = best_of_each(scores, labels, len(sizes))
    kept = torch.argsort(sizes, descending=True, stable=True)[:budget].sort().values
    return fill_to_budget(picks[kept], scores, budget)


class USLT(Selector):
    """USL-T's selection as one stage, from a checkpoint of its training.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint of `USLTTraining`, which holds the encoder and the heads; must be given.
        representative: which image stands for its cluster, see `select_uslt`.
        k: neighbours in the density.
        keep_from, cache: see `Selector`.
    """

    heads: ClusterHeads

    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        representative: Representative = "mean_confidence",
        k: int = 20,
        keep_from: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(image, budget, init_from, keep_from=keep_from, cache=cache)
        self.representative, self.k = representative, k

    def setup(self, stage: str) -> None:
        """Load the encoder and the heads."""
        if self.init_from is None:
            raise UslError("model.init_from: expected a checkpoint of USL-T's training, whose clusters are chosen from")
        super().setup(stage)
        self.heads = load_heads(self.init_from)

    def settled(self, n: int) -> dict[str, Any]:
        """The neighbours in the density, where it is looked at."""
        return {"k": limit_k(self.k, n, include_self=True)} if self.representative == "density" else {}

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_uslt`."""
        heads = self.heads.to(features.device)
        return select_uslt(features, heads, self.budget, representative=self.representative, k=self.k)
