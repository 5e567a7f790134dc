"""AS3L's selection: features tightened around several clusterings, then the middle of what stays together."""

from functools import partial
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.density import best_of_each, fill_to_budget
from usl_lightning.vectors.distances import check_budget, unit_rows
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.tightened import run_seed, tightened

Largest = Literal["of_all", "of_each"]


def select_as3l(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    clusterings: int = 6,
    epochs: int = 40,
    iterations: int = 200,
    largest: Largest = "of_all",
    groupings: int | None = None,
) -> Tensor:
    """Select as AS3L does (Wen, Pizarro, Williams, "Active self-semi-supervised learning", section 3.2).

    1. C k-means runs, each into `budget` clusters, from different starts.
    2. `tightened`: a linear layer that draws every point to its C centres (eq. 1).
    3. C k-means runs on those. Points that share a cluster in all C runs are a group; of each of the `budget` largest
       groups the member nearest to its median (taken in each dimension).

    The paper's text leaves open which groups are used if they are more than the budget. With the largest in each
    cluster of the first run, that run is privileged: the others cannot give back a class that it missed.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n; also K, the clusters of every run.
        seed: decides the starting points of k-means and the order of training.
        clusterings: C, at least 1.
        epochs: passes of the fine-tuning; 0 leaves the features as they are.
        iterations: of each k-means run, at most.
        largest: which groups of points that share a cluster in every run have their median picked: the largest of all,
            the plainer reading of "share a class in all C runs"; or the largest in each cluster of the first run.
        groupings: k-means runs after the fine-tuning; None: C. 1 is the paper's "k-medoids on fine-tuned features"
            (Table 4).

    Returns:
        int64 [budget], distinct, the largest group's first, or in the order of the first run's clusters; if there are
        too few groups, the remaining points of these, nearest to the median first, then the others. Ties to the lower
        index.

    Raises:
        UslError: a parameter out of range, features not finite or with rows of zeros.

    Memory beyond the input: three times the features in float32 (unit rows, their mean centres, and k-means' copy
    or the tuned features), however many clusterings; and C labels a point.
    """
    check_budget(budget, len(features))
    groupings = clusterings if groupings is None else groupings
    if clusterings < 1 or epochs < 0 or groupings < 1:
        raise UslError(f"{clusterings=}, {epochs=}, {groupings=}: expected at least 1, 0 and 1")
    x = unit_rows(features)
    tuned = tightened(x, budget, seed=seed, clusterings=clusterings, epochs=epochs, iterations=iterations)
    del x
    after = [kmeans(tuned, budget, seed=run_seed(seed, "after", c), iterations=iterations)[0] for c in range(groupings)]
    return _medians(tuned, torch.stack(after, 1), budget, largest)


def _largest_groups(groups: Tensor, sizes: Tensor, budget: int, largest: Largest) -> Tensor:
    """Places of the groups [g, C] that have a pick, by their sizes [g]."""
    if largest == "of_all":
        return torch.argsort(sizes, descending=True, stable=True)[:budget]
    clusters, cluster = torch.unique(groups[:, 0], return_inverse=True)
    return best_of_each(sizes.double(), cluster, len(clusters))


def _medians(x: Tensor, labels: Tensor, budget: int, largest: Largest) -> Tensor:
    """The middles of the largest groups of equal rows of labels [n, C]."""
    groups, group, sizes = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
    scores = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    picks = []
    for each in _largest_groups(groups, sizes, budget, largest):
        members = torch.nonzero(group == each)[:, 0]
        points = x[members].double()
        scores[members] = -(points - points.median(0).values).square().sum(1)
        picks.append(members[scores[members].argmax()])
    return fill_to_budget(torch.stack(picks), scores, budget)


class AS3L(Selector):
    """AS3L's selection as one stage: the features of the images, then `select_as3l`.

    Args:
        clusterings: C, k-means runs before and after the fine-tuning.
        epochs: of the fine-tuning.
        iterations: of k-means, at most.
        largest: which groups have their median picked, see `select_as3l`.
        groupings: k-means runs after the fine-tuning, if not as many as before.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    revision: int = 3

    ranges: ClassVar[Ranges] = {
        "clusterings": whole(1),
        "epochs": whole(0),
        "iterations": whole(1),
        "groupings": whole(1),
    }

    def __init__(
        self,
        clusterings: int = 6,
        epochs: int = 40,
        iterations: int = 200,
        largest: Largest = "of_all",
        groupings: int | None = None,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(**options)
        self._select = partial(
            select_as3l, clusterings=clusterings, epochs=epochs, iterations=iterations, largest=largest,
            groupings=groupings,
        )  # fmt: skip

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_as3l`."""
        return self._select(features, self.budget, seed=seed)
