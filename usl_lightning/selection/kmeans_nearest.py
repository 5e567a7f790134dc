"""k-means, and the point nearest to each centre."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.distributed import Share
from usl_lightning.data.batch import ImageSpec
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.assignment import pair_distances
from usl_lightning.vectors.density import best_of_each, fill_to_budget, occupied
from usl_lightning.vectors.distances import check_budget, unit_rows
from usl_lightning.vectors.kmeans import kmeans, shared_kmeans


def select_kmeans_nearest(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    iterations: int = 200,
    restarts: int = 1,
    on_clusters: Callable[[Tensor], None] | None = None,
    distributed: bool = False,
) -> Tensor:
    """One cluster for each label to buy (Lloyd, 1982), and of each cluster the point nearest to its centroid.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n; also the number of clusters.
        seed: decides the starting points of k-means.
        iterations: of k-means, at most.
        restarts: starts of k-means, of which the best counts.
        on_clusters: is given the cluster of each point, int64 [n].
        distributed: the features are this process's share of all images, in the order of the processes. The choice is
            the same on each of them, and for any number of them.

    Returns:
        int64 [budget], distinct, in cluster order; for empty clusters, the remaining points nearest to their
        own centroid. Ties to the lower index.

    Raises:
        UslError: budget or iterations out of range, features not finite or with rows of zeros.
    """
    share = Share(len(features), features.device, distributed)
    check_budget(budget, share.count)
    x = unit_rows(features)
    cluster = partial(kmeans, distributed=True) if distributed else shared_kmeans
    labels, centroids = cluster(x, budget, seed=seed, iterations=iterations, restarts=restarts)
    if on_clusters is not None:
        on_clusters(labels)
    distances = pair_distances(x, centroids, torch.arange(len(x), device=x.device), labels).float()
    clusters, labels = occupied(labels, budget, share)
    return fill_to_budget(best_of_each(-distances, labels, clusters, share), -distances, budget, share)


class KMeansNearest(Selector):
    """k-means as one stage: the features of the images, then `select_kmeans_nearest`.

    Args:
        image: of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint whose encoder gives the features.
        iterations: of k-means, at most.
        restarts: starts of k-means, of which the one of the least inertia counts.
        sharded: each process has its share of the features and no more; what is chosen is what one process chooses
            that has all.
        source: where else the features come from, and what to keep: see `Selector`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {"iterations": whole(1), "restarts": whole(1)}

    # `**source` is resolved by the command line to the parameters of `Selector`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        iterations: int = 200,
        restarts: int = 1,
        sharded: bool = False,
        **source: Any,
    ) -> None:
        super().__init__(image=image, budget=budget, init_from=init_from, **source)
        self.shard(sharded)
        self._select = partial(select_kmeans_nearest, iterations=iterations, restarts=restarts, distributed=sharded)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_kmeans_nearest`."""
        return self._select(features, self.budget, seed=seed, on_clusters=None if self.sharded else self.note_clusters)
