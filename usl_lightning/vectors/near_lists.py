"""Which points may be the nearest neighbours of many: those in the lists near each, compared as products of matrices.

k-means parts the points into lists; the neighbours of a point are nearly all in the lists whose centroids are nearest
to it, as in an inverted file (Sivic and Zisserman, ICCV 2003). That compares a point with those lists one after the
other; here a list is compared with all points that look at it at once.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from usl_lightning.base.progress import progress
from usl_lightning.compute.device import in_threads
from usl_lightning.data.keys import permutation
from usl_lightning.vectors.assignment import nearest_centroid

LIST_SAMPLE, LIST_ITERATIONS = 32, 5
"""Points a list, and iterations, of the k-means that finds the lists."""

BLOCK, ROWS, HITS = 2**16, 2**12, 2**20
"""Points whose candidates are looked for at once, those compared with all centroids at once, and finds that are
kept before the best of them are taken."""

RANKS = (0, 1, 8)
"""A point's own list is looked at first, then those near it, then the others: few of their points are nearer still."""

Hits = tuple[Tensor, Tensor, Tensor]
"""Rows, the scores of points that were found for them, and the places of these in the order of the lists, each [h]."""


class NearLists:
    """n points in 4√n lists of points near one another, and the lists near each point.

    Args:
        x: [n, d].
        seed: of the sample that k-means clusters.
    """

    def __init__(self, x: Tensor, seed: int) -> None:
        mean = x.mean(0)
        count = max(1, min(4 * math.isqrt(len(x)), len(x) // LIST_SAMPLE))
        some = (x[permutation(len(x), seed, "lists")[: LIST_SAMPLE * count].to(x.device)] - mean).float()
        centroids = some[:count].double()
        for _ in range(LIST_ITERATIONS):
            labels = nearest_centroid(some, centroids)
            sums = torch.zeros_like(centroids).index_add_(0, labels, some.double())
            sizes = torch.bincount(labels, minlength=count)[:, None]
            centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
        self.centroids = centroids.float()
        self._rows, self._mean = x, mean
        self.label = torch.cat([nearest_centroid((rows - mean).float(), centroids) for rows in torch.split(x, BLOCK)])
        self._order = torch.argsort(self.label, stable=True)
        self._ends = [0, *torch.bincount(self.label, minlength=count).cumsum(0).tolist()]

    def __len__(self) -> int:
        return len(self.centroids)

    def enough(self, rows: Tensor, neighbors: Tensor, recall: float) -> int:
        """How many lists near a point hold a share `recall` of the neighbours [m, k] of some points [m, d]."""
        scores = self._scores((rows - self._mean).float())
        own = scores.gather(1, self.label[neighbors])
        needed = torch.searchsorted(scores.sort(1).values, own, right=True)  # lists as near as its own come before it
        return int(needed.flatten().sort().values[math.ceil(recall * needed.numel()) - 1])

    def _scores(self, points: Tensor) -> Tensor:
        """[b, lists]: half the squared distance of points to centroids, less what all lists have in common."""
        return torch.addmm(_halves(self.centroids), points, self.centroids.T, alpha=-1)

    def candidates(self, m: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The m nearest points in the `count` lists near each point, as products in float32 see them.

        Yields:
            Points, int64 [b], and their candidates, int64 [b, m], -1 where the lists hold fewer.
        """
        with progress("neighbours", len(self._order), "row") as bar:
            blocks = torch.split(self._order, BLOCK)
            found = in_threads(lambda block: self._nearest_places(block, m, count), blocks, self._order.device)
            for order, places in zip(blocks, found, strict=True):
                yield order, torch.where(places < 0, -1, self._order[places])
                bar.update(len(order))

    @torch.no_grad()
    def _nearest_places(self, block: Tensor, m: int, count: int) -> Tensor:
        """int64 [b, m]: where those nearest to some points [b] are among the points in the order of the lists."""
        points = self._rows[block]
        near = torch.cat([self._nearest_lists(part, count) for part in torch.split(points, ROWS)])
        scores = torch.full((len(points), m), torch.inf, device=points.device)
        places = torch.full((len(points), m), -1, device=points.device)
        for first, last in zip(RANKS, (*RANKS[1:], count), strict=True):
            found: list[Hits] = []
            worst, finds = scores.amax(1), 0
            for number, rows in _groups(near[:, first:last], len(self)):
                found.append(self._nearer(points[rows], number, rows, worst[rows], m))
                finds += len(found[-1][0])
                if finds > HITS:
                    _merge(found, scores, places)
                    found, worst, finds = [], scores.amax(1), 0
            _merge(found, scores, places)
        return places

    def _nearest_lists(self, points: Tensor, count: int) -> Tensor:
        scores = self._scores((points - self._mean).float())
        return scores.topk(count, largest=False, sorted=True).indices

    def _nearer(self, points: Tensor, number: int, rows: Tensor, worst: Tensor, m: int) -> Hits:
        """Which points of a list are nearer to some others [b, d] than the worst these have, by half squared distances.

        About the centroid, so that the rounding of products is as small as the list is. The list's points are not kept
        in their order: few lists are near a block.
        """
        start, end = self._ends[number], self._ends[number + 1]
        centre = self._mean + self.centroids[number]
        inside, points = ((each - centre).float() for each in (self._rows[self._order[start:end]], points))
        scores = torch.addmm(_halves(inside), points, inside.T, alpha=-1)
        own = _halves(points)
        worst = worst - own
        unknown = torch.nonzero(worst.isinf())[:, 0]
        if len(unknown) and m <= end - start:  # NumPy's partition and flatnonzero take a fraction of torch's time
            nearest = np.partition(scores[unknown].numpy(), m - 1)[:, m - 1]
            worst[unknown] = torch.from_numpy(np.nextafter(nearest, np.float32(np.inf)))  # equal ones are among them
        hits = torch.from_numpy(np.flatnonzero((scores < worst[:, None]).numpy()))
        row = hits.div(max(1, end - start), rounding_mode="floor")
        return rows[row], scores.flatten()[hits] + own[row], hits - row * (end - start) + start


def _halves(points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points, dim=1).square_().div_(2)


def _merge(found: Sequence[Hits], best: Tensor, at: Tensor) -> None:
    """Put the least of the scores that were found for rows into `best` [b, m], and their places into `at`."""
    if not found:
        return
    rows, scores, places = (torch.cat(part) for part in zip(*found, strict=True))
    bits = scores.view(torch.int32)
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # sorts as the scores do
    order = torch.argsort((rows << 32) + ascending)
    rows, m = rows[order], best.shape[1]
    sizes = torch.bincount(rows, minlength=len(best))
    column = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows]
    first = torch.nonzero(column < m)[:, 0]
    index = rows[first] * m + column[first]
    more, where = torch.full_like(best, torch.inf), torch.full_like(at, -1)
    more.view(-1)[index], where.view(-1)[index] = scores[order[first]], places[order[first]]
    least = torch.cat([best, more], 1).topk(m, largest=False, sorted=False)
    best.copy_(least.values)
    at.copy_(torch.cat([at, where], 1).gather(1, least.indices))


def _groups(near: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """Each of `count` lists that some rows of `near` [b, r] name, with these rows."""
    named = near.flatten()
    order = torch.argsort(named, stable=True)
    rows = order.div_(max(1, near.shape[1]), rounding_mode="floor")
    sizes = torch.bincount(named, minlength=count).tolist()
    for number, part in enumerate(torch.split(rows, sizes)):
        if len(part):
            yield number, part
