"""k-medoids: points that the others are near to."""

import logging
from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import counted
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.density import fill_to_budget
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, squared_distances, unit_rows

log = logging.getLogger(__name__)


def select_kmedoids(features: Tensor, budget: int, *, seed: int = 0, iterations: int = 100) -> Tensor:
    """The medoids of `budget` clusters by alternation (Park, Jun, 2009; there with another start).

    From random points: every point joins its nearest medoid (ties: the lower cluster), then each cluster's
    member with the least sum of Euclidean distances to the members becomes its medoid, until none changes.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n.
        seed: decides the starting points.
        iterations: at most this many, at least 1.

    Returns:
        int64 [budget], distinct, in cluster order; where duplicates left a cluster without points, those
        farthest from all medoids instead. Ties to the lower index.

    Raises:
        UslError: budget or iterations out of range, features not finite or with rows of zeros.

    Time: the sum of the squared cluster sizes, in distances, an iteration.
    """
    check_budget(budget, len(features))
    if iterations < 1:
        raise UslError(f"iterations={iterations} of k-medoids: expected at least 1")
    x = unit_rows(features)
    medoids = permutation(len(x), seed, "k-medoids")[:budget].to(x.device)
    with exact_arithmetic(x.device):
        for iteration in counted(iterations, "k-medoids", "iteration"):
            before, labels = medoids, _nearest(x, x[medoids])[1]
            medoids = torch.stack([_medoid(x, labels, c, int(before[c])) for c in range(budget)])
            if torch.equal(before, medoids):
                log.info("k-medoids: converged after %d iterations", iteration + 1)
                break
        distances, labels = _nearest(x, x[medoids])
    kept = torch.bincount(labels, minlength=budget) > 0
    return fill_to_budget(medoids[kept], distances, budget)


def _nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance [n] and int64 number [n] of each row's nearest of the centers [m, d]."""
    distances = torch.empty(len(x), device=x.device)
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    for rows in chunks(len(x), 24 * len(centers), x.device):
        distances[rows], labels[rows] = _first_min(squared_distances(x[rows], centers))
    return distances, labels


def _first_min(rows: Tensor) -> tuple[Tensor, Tensor]:
    labels = rows.argmin(1)
    return rows.gather(1, labels[:, None])[:, 0], labels


def _medoid(x: Tensor, labels: Tensor, cluster: int, before: int) -> Tensor:
    """int64 []: the member of a cluster with the least sum of distances; `before` if there are no members."""
    members = torch.nonzero(labels == cluster)[:, 0]
    if len(members) == 0:
        return members.new_tensor(before)
    sums = torch.empty(len(members), device=x.device)
    for rows in chunks(len(members), 32 * len(members), x.device):
        sums[rows] = squared_distances(x[members[rows]], x[members]).sqrt().double().sum(1).float()
    return members[sums.argmin()]


class KMedoids(Selector):
    """k-medoids as one stage: the features of the images, then `select_kmedoids`.

    Args:
        iterations: at most this many.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    ranges: ClassVar[Ranges] = {"iterations": whole(1)}

    def __init__(self, iterations: int = 100, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(**options)
        self._select = partial(select_kmedoids, iterations=iterations)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_kmedoids`."""
        return self._select(features, self.budget, seed=seed)
