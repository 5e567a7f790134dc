"""TypiClust: the most typical point of each cluster (Hacohen, Dekel, Weinshall, ICML 2022)."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.distances import check_budget, unit_rows
from usl_lightning.vectors.kmeans import shared_kmeans
from usl_lightning.vectors.neighbors import knn

log = logging.getLogger(__name__)

SMALL_CLUSTER = 5
"""Clusters of this size or less are used last; the published code never uses them, and may run out of others."""


def select_typiclust(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    k: int = 20,
    max_clusters: int = 500,
    squared: bool = True,
    iterations: int = 200,
    restarts: int = 1,
    on_clusters: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """TPC_RP (section 3.2): k-means into min(budget, 500) clusters; the most typical point of each in turn.

    Clusters take turns, the largest first; those of 5 points or fewer have theirs when the others are used up, so
    that any budget is met (the published code leaves them out). Typicality is 1/(mean distance to the k nearest of
    the cluster's points not chosen yet), with k at most half their number.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n.
        seed: decides the starting points of k-means (the published code leaves it to scikit-learn, and takes
            mini-batches above 50 clusters).
        k: neighbours that make a point typical.
        max_clusters: however large the budget is.
        squared: the mean of squared distances, as in the published code, or of plain ones, as in eq. 1.
        iterations: of k-means, at most.
        restarts: starts of k-means, of which the one of the least inertia counts; the published code
            leaves it to scikit-learn.
        on_clusters: is given the cluster of each point, int64 [n].

    Returns:
        int64 [budget], distinct, in order of choice; ties to the lower index.

    Raises:
        UslError: budget out of range, features not finite or with rows of zeros.
    """
    check_budget(budget, len(features))
    x = unit_rows(features)
    labels, _ = shared_kmeans(x, min(budget, max_clusters), seed=seed, iterations=iterations, restarts=restarts)
    if on_clusters is not None:
        on_clusters(labels)
    sizes = torch.bincount(labels).tolist()
    order = sorted((c for c, size in enumerate(sizes) if size > 0), key=lambda c: (-sizes[c], c))
    largest = max(1, max(sizes) // 2)
    if k > largest:
        log.info("TypiClust: k = %d instead of %d, half of the largest cluster", largest, k)
    members = {c: torch.nonzero(labels == c)[:, 0] for c in order}
    chosen: list[int] = []
    for group in ([c for c in order if sizes[c] > SMALL_CLUSTER], [c for c in order if sizes[c] <= SMALL_CLUSTER]):
        while len(chosen) < budget and any(len(members[c]) for c in group):
            for c in [c for c in group if len(members[c])][: budget - len(chosen)]:
                pick = _most_typical(x[members[c]], k, squared)
                chosen.append(int(members[c][pick]))
                members[c] = torch.cat([members[c][:pick], members[c][pick + 1 :]])
    return torch.tensor(chosen, device=x.device)


def _most_typical(x: Tensor, k: int, squared: bool) -> int:
    """The row of x [n, d] nearest on average to its min(k, n/2) nearest; the first of equals, or of one."""
    k = min(k, len(x) // 2)
    if k == 0:
        return 0
    distances = knn(x, k, include_self=False)[0].double()
    return int((distances if squared else distances.sqrt()).mean(1).argmin())


class TypiClust(Selector):
    """TypiClust as one stage: the features of the images, then `select_typiclust`.

    Args:
        k: neighbours that make a point typical.
        max_clusters: however large the budget is.
        squared: typicality by squared distances (the published code) or plain ones (the paper).
        iterations: of k-means, at most.
        restarts: starts of k-means, of which the one of the least inertia counts.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {"k": whole(1), "max_clusters": whole(1), "iterations": whole(1), "restarts": whole(1)}

    def __init__(
        self,
        k: int = 20,
        max_clusters: int = 500,
        squared: bool = True,
        iterations: int = 200,
        restarts: int = 1,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self._k = k
        self._select = partial(
            select_typiclust,
            k=k, max_clusters=max_clusters, squared=squared, iterations=iterations, restarts=restarts,
        )  # fmt: skip

    def settled(self, n: int) -> dict[str, Any]:
        """The neighbours, at most: half of the largest cluster."""
        sizes = [n] if self.clusters is None else torch.bincount(self.clusters).tolist()
        return {"k": min(self._k, max(1, max(sizes) // 2))}

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_typiclust`."""
        return self._select(features, self.budget, seed=seed, on_clusters=self.note_clusters)
