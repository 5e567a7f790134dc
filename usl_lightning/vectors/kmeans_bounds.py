"""The assignment step of k-means, without the distances that cannot matter (Ding et al., ICML 2015, "Yinyang")."""

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 2**20
"""Points and products held at once for each thread, about what its own cache holds."""


class GroupBounds:
    """Nearest centroids again and again, as the centroids move less and less.

    The centroids are put into groups of near ones. For each point and group a lower bound is kept of the distance to
    the group's centroids other than the point's own; when centroids move, it falls by the largest move in the group.
    A group whose bound is above the distance to the own centroid cannot hold a nearer one and is left out.

    The labels are those of comparing all products |c|²/2 - x·c in float32, ties to the lower cluster: a group is left
    out only if it could not have won with any rounding of the products. A product is taken to be within
    (5d/8 + 8)·2^-24·(|x| + |c|)² of the truth, twofold for the doubled score.

    Args:
        x: float32 [n, d] on the CPU, kept as it is.
        groups: int64 [k], the group of each centroid, each number from 0 up occurring.

    Memory: 4 bytes for each point and group, and about 40 for each point.
    """

    def __init__(self, x: Tensor, groups: Tensor) -> None:
        n = len(x)
        self.x, self.group_of = x, groups
        self.members = [torch.nonzero(groups == g)[:, 0] for g in range(int(groups.max()) + 1)]
        self.lower = torch.zeros(len(self.members), n)
        self.squares = torch.linalg.vector_norm(x, dim=1).square()
        self.labels = torch.full((n,), -1)
        self.centroids: Tensor | None = None

    def assign(self, centroids: Tensor) -> Tensor:
        """int64 [n]: the nearest of the centroids [k, d] to each point."""
        centroids = centroids.to(self.x.dtype)
        slack = self._slack(centroids)
        if self.centroids is None:
            reach = torch.full_like(self.squares, torch.inf)
        else:
            self._lower_bounds(centroids)
            reach = (self._own_distances(centroids).square_() + 2 * slack).sqrt_()
        own = torch.where(self.labels < 0, -1, self.group_of[self.labels])
        doubtful = (self.lower.amin(0) <= reach).logical_and_(reach >= 0)
        labels, best = self.labels.clone(), torch.full_like(reach, torch.inf)
        for g in range(len(self.members)):
            open_here = (self.lower[g] <= reach).logical_or_(own == g).logical_and_(doubtful)
            self._search(g, centroids, torch.nonzero(open_here)[:, 0], own, slack, labels, best)
        self._forget(torch.nonzero(labels != self.labels)[:, 0], own, labels)
        self.labels, self.centroids = labels, centroids
        return labels

    def _slack(self, centroids: Tensor) -> Tensor:
        """[n]: how far a squared distance made of float32 products may be from the truth."""
        largest = torch.linalg.vector_norm(centroids, dim=1).max()
        return 2 * (0.625 * self.x.shape[1] + 8) * 2.0**-24 * (self.squares.sqrt() + largest).square()

    def _lower_bounds(self, centroids: Tensor) -> None:
        assert self.centroids is not None
        moves = torch.linalg.vector_norm(centroids.double() - self.centroids, dim=1)
        for bounds, members in zip(self.lower, self.members, strict=True):
            bounds -= float(moves[members].max()) * (1 + 1e-6) + 1e-7 * float(bounds.max())

    def _own_distances(self, centroids: Tensor) -> Tensor:
        """[n]: from each point to its centroid, from the differences."""
        out = torch.empty_like(self.squares)
        for start in range(0, len(out), self._rows(self.x.shape[1])):
            rows = slice(start, start + self._rows(self.x.shape[1]))
            differences = centroids[self.labels[rows]].sub_(self.x[rows])
            torch.linalg.vector_norm(differences, dim=1, out=out[rows])
        return out.mul_(1 + 1e-5)

    def _search(
        self, g: int, centroids: Tensor, rows: Tensor, own: Tensor, slack: Tensor, labels: Tensor, best: Tensor
    ) -> None:
        """Compare the points `rows` with all centroids of a group, and renew their bounds of it."""
        members, near = self.members[g], centroids[self.members[g]].T.contiguous()
        half_norms = near.square().sum(0) / 2
        for part in rows.split(self._rows(self.x.shape[1] + len(members))):  # type: ignore[no-untyped-call]
            scores = torch.addmm(half_norms, self.x[part], near, alpha=-1)
            winners = torch.from_numpy(np.argmin(scores.numpy(), 1))[:, None]
            first, found = scores.gather(1, winners)[:, 0], members[winners[:, 0]]
            second = scores.scatter_(1, winners, torch.inf).amin(1)
            before, best_label = best[part], labels[part]
            wins = (first < before) | ((first == before) & (found < best_label))
            best[part], labels[part] = torch.where(wins, first, before), torch.where(wins, found, best_label)
            others = torch.where((own[part] == g) & (found == self.labels[part]), second, first)
            squared = others.mul_(2).add_(self.squares[part]).sub_(slack[part])
            self.lower[g, part] = squared.clamp_(min=0, max=1e30).sqrt_()

    def _forget(self, changed: Tensor, own: Tensor, labels: Tensor) -> None:
        """The bounds of the two groups that a point moved between are not of the right centroids any more."""
        self.lower[self.group_of[labels[changed]], changed] = 0
        left = changed[own[changed] >= 0]
        self.lower[own[left], left] = 0

    @staticmethod
    def _rows(width: int) -> int:
        return max(64, BLOCK_BYTES * torch.get_num_threads() // (4 * width))
