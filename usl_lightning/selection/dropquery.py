"""DropQuery: where the guess changes when features are dropped, one image of each cluster (Gupte et al., 2024)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.ranges import Ranges, at_least, whole
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import Key
from usl_lightning.selection.next_selector import Known, NextOptions, NextSelector
from usl_lightning.vectors.density import best_of_each, fill_to_budget
from usl_lightning.vectors.kmeans import kmeans


def changes(known: Known, passes: int, dropout: float, seed: int) -> Tensor:
    """How often the guess is another one when a share of the features is dropped; int64 [n], 0 to `passes`."""
    guess, counts = known.probabilities.argmax(1), torch.zeros_like(known.probabilities[:, 0], dtype=torch.int64)
    x = known.inputs
    for number in range(passes):
        for rows in chunks(len(x), 32 * x.shape[1], x.device):
            slots = torch.arange(rows.start, rows.stop, device=x.device)
            stays = Key.of(seed, "DropQuery", number, slots=slots).uniform(x.shape[1]) >= dropout
            left = x[rows] * stays if known.raw is not None else F.normalize(x[rows] * stays, dim=1)
            counts[rows] += known.classify(left).argmax(1) != guess[rows]
    return counts


class DropQuery(NextSelector):
    """Of the images whose guess changes in most passes of dropout on their features, the most central of clusters.

    There are as many clusters as images to pick. Where fewer images change, those of the smallest largest probability
    are taken too.

    Args:
        passes: of dropout.
        dropout: share of the features that each drops.
        iterations: of k-means, at most.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {"passes": whole(1), "dropout": at_least(0, below=1), "iterations": whole(1)}

    def __init__(
        self,
        passes: int = 3,
        dropout: float = 0.75,
        iterations: int = 200,
        **options: Unpack[NextOptions],
    ) -> None:
        super().__init__(**options)
        self.passes, self.dropout, self.iterations = passes, dropout, iterations

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """See the class."""
        unsure = known.open[changes(known, self.passes, self.dropout, seed)[known.open] * 2 > self.passes]
        if len(unsure) <= count:
            scores = -known.probabilities.amax(1)
            scores[unsure] += 1  # above all others
            return known.highest(scores, count)
        x = known.features[unsure]
        clusters, centres = kmeans(x, count, seed=seed, iterations=self.iterations)
        nearness = -(x.double() - centres[clusters]).square().sum(1)
        names, clusters = torch.unique(clusters, return_inverse=True)
        return unsure[fill_to_budget(best_of_each(nearness, clusters, len(names)), nearness, count)]
