"""MMA: MixMatch and active learning (Song, Berthelot, Rostamizadeh, 2019), its `diff2.aug` with or without k-means."""

import logging
from collections.abc import Iterator
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.selection.next_selector import Known
from usl_lightning.selection.view_selector import ViewOptions, ViewSelector
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.votes import margins

log = logging.getLogger(__name__)


def shares(sizes: Tensor, count: int) -> Tensor:
    """`count` places for clusters of these sizes [k], whose sum is at least that: in proportion, none above its size.

    The rounded shares; places that are missing go where the share lost most, those too many come from the largest.
    """
    exact = count * sizes.double() / sizes.sum()
    places = torch.minimum(exact.round().long(), sizes)
    while int(places.sum()) < count:
        lost = (exact - places).masked_fill(places == sizes, -torch.inf)
        places[lost.argmax()] += 1
    while int(places.sum()) > count:
        places[places.argmax()] -= 1
    return places


class MMA(ViewSelector):
    """The images of the smallest difference of the two largest probabilities, of their mean over weak views.

    With `clusters`, each k-means cluster of those that may be picked gets its `shares` of the places (`kmeanprop`).
    The published code never looks at two views: it drops `.aug` from the option before it asks for it.

    Args:
        views: of each image.
        clusters: of k-means, 20 in the published code; 0: the images are taken as they come.
        options: the view, the budget, what is kept, the classifier and the features: see `ViewSelector`.
    """

    ranges: ClassVar[Ranges] = {"clusters": whole(0)}

    def __init__(self, views: int = 2, clusters: int = 0, **options: Unpack[ViewOptions]) -> None:
        super().__init__(views=views, **options)
        self.clusters_to_share = self._clusters_used = clusters

    def settled(self, n: int) -> dict[str, Any]:
        """Clusters, which cannot be more than the images that may be picked."""
        return {"clusters": self._clusters_used}

    def score(self, views: Iterator[Tensor]) -> Tensor:
        """1 less the margin of the mean."""
        total = next(views)
        for p in views:
            total = total + p
        return 1 - margins(total / self.views)

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """See the class."""
        scores = self.scores.to(known.features.device)
        clusters = min(self.clusters_to_share, len(known.open))
        if clusters < self.clusters_to_share:
            log.info("MMA: %d clusters instead of %d, of as many images", clusters, self.clusters_to_share)
        self._clusters_used = clusters
        if clusters < 2 or len(known.open) == count:
            return known.highest(scores, count)
        found, _ = kmeans(known.features[known.open], clusters, seed=seed)
        places = shares(torch.bincount(found, minlength=clusters), count)
        order = known.highest(scores, len(known.open))
        cluster = torch.full_like(scores, -1, dtype=torch.int64)
        cluster[known.open] = found
        before = torch.zeros_like(order)
        for number in range(clusters):  # the rank of each image among those of its cluster
            own = cluster[order] == number
            before[own] = torch.arange(int(own.sum()), device=order.device)
        return order[before < places[cluster[order]]]
