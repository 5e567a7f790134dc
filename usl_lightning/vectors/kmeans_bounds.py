"""The assignment step of k-means without the products that cannot matter (Ding et al., ICML 2015, "Yinyang")."""

import torch
from torch import Tensor

from usl_lightning.compute.device import in_threads
from usl_lightning.vectors.assignment import About, Products, blocks, rounding, scored, settled, two_least


class GroupBounds(Products):
    """Nearest centroids again and again, as the centroids move less and less.

    The centroids are put into groups of near ones. Of each point is kept how far its own centroid is at most, and how
    far the other ones of each group are at least. When centroids move, the first rises by the move of the own one, the
    others fall by the largest move in the group. A group that is farther than the own centroid cannot hold a nearer
    one and is left out; the distance to the own centroid is measured again before any group is searched.

    The labels are those of `Products`: the bounds hold whatever the rounding.

    Args:
        x: float32 [n, d] on the CPU, kept as it is.
        groups: int64 [k], the group of each centroid, each number from 0 up occurring.

    Memory: 4 bytes for each point and group, and about 40 for each point.
    """

    def __init__(self, x: Tensor | About, groups: Tensor) -> None:
        super().__init__(x)
        self.group_of = groups
        self.members = [torch.nonzero(groups == g)[:, 0] for g in range(int(groups.max()) + 1)]
        self.lower = torch.zeros(len(self.members), len(x))
        self.upper = torch.full((len(x),), torch.inf)
        self.labels = torch.zeros(len(x), dtype=torch.int64)
        self.centroids: Tensor | None = None
        self._farthest = 0.0  # no distance is larger

    def assign(self, centroids: Tensor) -> Tensor:
        """int64 [n]: the nearest of the centroids [k, d] to each point."""
        values, halves = scored(centroids, self.x.dtype)
        if self.centroids is not None:
            self._move(centroids)
        self._farthest = 2 * float(self.norms.max() + torch.linalg.vector_norm(values, dim=1).max())

        def renew(rows: Tensor) -> None:
            if self.centroids is not None:
                self._measure(rows, values)
                rows = rows[self.lower[:, rows].amin(0) <= self.upper[rows]]
            self._search(rows, centroids, values, halves)

        rows = torch.nonzero(self.lower.amin(0) <= self.upper)[:, 0]
        list(in_threads(renew, torch.tensor_split(rows, torch.get_num_threads())))
        self.centroids = centroids
        return self.labels.clone()

    def _move(self, centroids: Tensor) -> None:
        assert self.centroids is not None
        moves = torch.linalg.vector_norm(centroids.double() - self.centroids, dim=1) * (1 + 1e-6)
        for bounds, members in zip(self.lower, self.members, strict=True):
            bounds -= float(moves[members].max()) + 1e-7 * self._farthest
        self.upper += (moves + 1e-7 * self._farthest).float()[self.labels]

    def _measure(self, rows: Tensor, values: Tensor) -> None:
        """Renew the distance from each of some points to its centroid, from the differences."""
        largest = float(torch.linalg.vector_norm(values, dim=1).max())
        for block in blocks(len(rows), self.x.shape[1], self.x):
            at = rows[block]
            differences = values[self.labels[at]].sub_(self.x[at])
            own = torch.linalg.vector_norm(differences, dim=1)
            self.upper[at] = own.mul_(1 + 1e-5).add_(1e-6 * largest)

    def _search(self, rows: Tensor, centroids: Tensor, values: Tensor, halves: Tensor) -> None:
        """Compare points with all centroids of the groups that may hold a nearer one, and renew their bounds."""
        error, squares = rounding(self.norms[rows], values), self.norms[rows].square()
        slack = 2 * error + 1e-6 * squares
        own = self.group_of[self.labels[rows]]
        reach = self.upper[rows]
        least, second, rest = (torch.full_like(reach, torch.inf) for _ in range(3))
        labels = self.labels[rows]

        def at_least(scores: Tensor, part: Tensor) -> Tensor:
            return (2 * scores + squares[part] - slack[part]).clamp_(0, self._farthest**2).sqrt_()

        for g, members in enumerate(self.members):
            near, half = values[members].T.contiguous(), halves[members]
            open_here = torch.nonzero((self.lower[g, rows] <= reach).logical_or_(own == g))[:, 0]
            for block in blocks(len(open_here), self.x.shape[1] + len(members), self.x):
                part = open_here[block]
                one, places, two = two_least(torch.addmm(half, self.x[rows[part]], near, alpha=-1))
                before = least[part]
                wins = one < before
                second[part] = torch.minimum(torch.maximum(before, one), torch.minimum(second[part], two))
                least[part] = torch.minimum(before, one)
                labels[part] = torch.where(wins, members[places], labels[part])
                rest[part] = torch.where(wins, two, rest[part])
                self.lower[g, rows[part]] = at_least(one, part)
        everything = torch.arange(len(rows))
        self.lower[self.group_of[labels], rows] = at_least(rest, everything)
        self.upper[rows] = (2 * least + squares + 3 * slack).clamp_(min=0).sqrt_().mul_(1 + 1e-6)
        doubtful = torch.nonzero(second <= least + 2 * error)[:, 0]
        self.lower[self.group_of[labels[doubtful]], rows[doubtful]] = 0
        labels[doubtful] = settled(self.x, centroids, rows[doubtful], (least + 2 * error)[doubtful])
        self.lower[self.group_of[labels[doubtful]], rows[doubtful]] = 0
        self.labels[rows] = labels
