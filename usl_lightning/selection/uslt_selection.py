"""USL-T's selection: the most representative image of each learned cluster (Wang, Lian, Yu, ECCV 2022, section 2.3)."""

import logging
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.cluster_heads import ClusterHeads, cluster_confidence, load_heads
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.density import SMALLEST, best_of_each, fill_to_budget, limit_k, limited_density
from usl_lightning.vectors.distances import check_budget, check_features, unit_rows

log = logging.getLogger(__name__)

Representative = Literal["confidence", "mean_confidence", "density"]


def clusters_and_scores(
    features: Tensor, heads: ClusterHeads, *, representative: Representative, k: int
) -> tuple[Tensor, Tensor]:
    """The cluster of each image in the first head, int64 [n], and how well it stands for it, [n].

    Args:
        features: [n, d] of the encoder that was trained with the heads, CPU or CUDA.
        heads: the trained heads, on the same device.
        representative: which image of a cluster: the one of highest probability in the first head ("confidence",
            CIFAR-100), averaged over all heads ("mean_confidence", CIFAR-10), or the densest ("density", ImageNet).
        k: neighbours in the density, see `limited_density`.

    Raises:
        UslError: features not finite, an unknown representative.
    """
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
    return clusters, scores


def best_of_clusters(clusters: Tensor, scores: Tensor, budget: int) -> Tensor:
    """The best image of each of the `budget` largest clusters, filled up with the best others.

    Args:
        clusters: integers [n], ≥ 0; not every number need occur.
        scores: [n], finite.
        budget: from 1 to n.

    Returns:
        int64 [budget], distinct, in cluster order. Ties: the lower cluster, the lower index.

    Raises:
        UslError: budget out of range.
    """
    check_budget(budget, len(clusters))
    _, labels, sizes = torch.unique(clusters, return_inverse=True, return_counts=True)
    picks = best_of_each(scores, labels, len(sizes))
    if budget < len(sizes):
        log.info("USL-T: the %d largest of %d clusters are picked from, one image of each", budget, len(sizes))
    kept = torch.argsort(sizes, descending=True, stable=True)[:budget].sort().values
    return fill_to_budget(picks[kept], scores, budget)


def best_followers(clusters: Tensor, scores: Tensor, chosen: Tensor, count: int) -> tuple[tuple[int, ...], ...]:
    """The best others of a chosen image's cluster, which take its label as a pseudo-label (appendix 6.12).

    Args:
        clusters: int64 [n], ≥ 0.
        scores: [n], finite.
        chosen: int64 [m], distinct. Of those that share a cluster the best has the followers.
        count: how many follow an image at most.

    Returns:
        For each chosen image the indices, best first, ties to the lower index; none of them is chosen itself.
    """
    leads = torch.zeros(len(clusters), dtype=torch.bool)
    leads[chosen] = True
    by_score = torch.argsort(scores.cpu(), descending=True, stable=True)
    by_cluster = by_score[torch.argsort(clusters.cpu()[by_score], stable=True)]
    groups = torch.split(by_cluster, torch.unique(clusters.cpu(), return_counts=True)[1].tolist())
    followers_of: dict[int, tuple[int, ...]] = {}
    for group in groups:
        if bool(leads[group].any()):
            leader = int(group[leads[group]][0])
            followers_of[leader] = tuple(group[~leads[group]][:count].tolist())
    return tuple(followers_of.get(image, ()) for image in chosen.tolist())


class USLT(Selector):
    """USL-T's selection as one stage, from a checkpoint of its training.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint of `USLTTraining`, which holds the encoder and the heads; must be given.
        representative: which image stands for its cluster, see `clusters_and_scores`.
        k: neighbours in the density.
        followers: images of its cluster, the next best, that take a chosen image's label as a pseudo-label when a
            classifier is trained (19 on ImageNet: with the image itself the 20 densest).
        keep_from, cache: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"k": whole(1), "followers": whole(0)}

    needs = ("init_from",)

    heads: ClusterHeads
    _ranked: tuple[Tensor, Tensor]

    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        representative: Representative = "mean_confidence",
        k: int = 20,
        followers: int = 0,
        keep_from: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(image, budget, keep_from=keep_from, init_from=init_from, cache=cache)
        self.representative, self.k, self.count = representative, k, followers

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
        """The best of each cluster of the first head, see `best_of_clusters`."""
        heads = self.heads.to(features.device)
        self._ranked = clusters_and_scores(features, heads, representative=self.representative, k=self.k)
        self.note_clusters(self._ranked[0])
        return best_of_clusters(*self._ranked, self.budget)

    def followers(self, chosen: Tensor) -> tuple[tuple[int, ...], ...]:
        """See `best_followers`."""
        return best_followers(*self._ranked, chosen, self.count) if self.count else ()
