"""The nearest centroid of each point: of rounded products, as far as they can tell, and of exact distances beyond.

The label is that of the least Σ(x - c)² in float64, added up in a fixed order; ties go to the lower cluster. Products
|c|²/2 - x·c in the features' precision say which centroids that may be, because the error of rounding has a bound;
where more than one may be, those are compared exactly. So the labels are a function of the numbers alone: not of the
device, of how many rows are looked at together, of the threads, or of the order in which a library adds.
"""

import numpy as np
import torch
from torch import Tensor

from usl_lightning.compute.device import chunks, in_threads

BLOCK_BYTES = 2**20
"""Points and products held at once for each thread, about what its own cache holds."""

BLOCK_ROWS = 64
"""Rows at once at least: with fewer, the products themselves get slower."""


class About:
    """Rows [n, d] less a point [d], taken away when they are looked at: a copy of many would be as large again."""

    def __init__(self, rows: Tensor, point: Tensor) -> None:
        self._rows, self._point = rows, point
        self.shape, self.dtype, self.device = rows.shape, rows.dtype, rows.device

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        return self._rows[which] - self._point


def nearest_centroid(x: Tensor, centroids: Tensor) -> Tensor:
    """int64 [n]: for each row of x [n, d] the nearest of the centroids [k, d]; ties to the lower."""
    return Products(x).assign(centroids)


class Products:
    """Nearest centroids by comparing each point with all of them.

    Args:
        x: [n, d], float32 or float64, kept as it is.
    """

    def __init__(self, x: Tensor | About) -> None:
        self.x = x
        self.norms = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for rows in chunks(len(x), 16 * x.shape[1], x.device):
            self.norms[rows] = torch.linalg.vector_norm(x[rows].double(), dim=1).to(x.dtype)

    def assign(self, centroids: Tensor) -> Tensor:
        """int64 [n]: the nearest of the centroids [k, d] to each point."""
        values, halves = scored(centroids, self.x.dtype)
        error = rounding(self.norms, values)
        labels = torch.empty(len(self.x), dtype=torch.int64, device=self.x.device)
        least, second = torch.empty_like(self.norms), torch.empty_like(self.norms)

        def compare(rows: slice) -> None:
            scores = torch.addmm(halves, self.x[rows], values.T, alpha=-1)
            least[rows], labels[rows], second[rows] = two_least(scores)

        list(in_threads(compare, blocks(len(self.x), len(values), self.x), self.x.device))
        open_rows = torch.nonzero(second <= least + 2 * error)[:, 0]
        labels[open_rows] = settled(self.x, centroids, open_rows, (least + 2 * error)[open_rows])
        return labels


def blocks(n: int, width: int, x: Tensor | About) -> list[slice]:
    """Slices that cover `range(n)`, of rows whose products with `width` others stay in the cache of a CPU."""
    if x.device.type != "cpu":
        return list(chunks(n, 3 * x.dtype.itemsize * width, x.device))
    step = max(BLOCK_ROWS, BLOCK_BYTES // (x.dtype.itemsize * width))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def scored(centroids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Centroids [k, d] in the precision of the products, and their |c|²/2 [k]."""
    return centroids.to(dtype), (centroids.double().square().sum(1) / 2).to(dtype)


def rounding(norms: Tensor, values: Tensor) -> Tensor:
    """[n]: how far |c|²/2 - x·c may be from the truth, by |x|: d roundings of sums of both, and a few of theirs."""
    largest = torch.linalg.vector_norm(values, dim=1).max()
    unit = torch.finfo(values.dtype).eps / 2
    return (values.shape[1] + 8) * unit * largest * (norms + largest / 2)


def two_least(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least of each row of scores [b, k], where it is, and the second least (infinity if there is one column).

    Writes over the scores. NumPy's argmin is vectorised: a fortieth of the products' time, where torch's takes a third.
    """
    cpu = scores.device.type == "cpu"
    places = torch.from_numpy(np.argmin(scores.numpy(), 1)) if cpu else scores.argmin(1)
    first = scores.gather(1, places[:, None])[:, 0]
    return first, places, scores.scatter_(1, places[:, None], torch.inf).amin(1)


def settled(x: Tensor | About, centroids: Tensor, rows: Tensor, limit: Tensor) -> Tensor:
    """int64 [m]: exact labels of some rows of x, of the centroids whose |c|²/2 - x·c is at most the limit [m]."""
    values, halves = scored(centroids, x.dtype)
    labels = torch.empty_like(rows)
    for part in chunks(len(rows), 16 * len(values), x.device):
        scores = torch.addmm(halves, x[rows[part]], values.T, alpha=-1)
        row, column = torch.nonzero(scores <= limit[part, None]).unbind(1)
        distances = pair_distances(x, centroids, rows[part][row], column)
        least = distances.new_full((len(scores),), torch.inf).scatter_reduce_(0, row, distances, "amin")
        tied = distances == least[row]
        nearest = row.new_full((len(scores),), len(values))
        labels[part] = nearest.scatter_reduce_(0, row[tied], column[tied], "amin")
    return labels


def pair_distances(x: Tensor | About, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """float64 [p]: squared distances of the pairs (x[i], y[j]), halves added to halves: in one order everywhere."""
    out = torch.empty(len(i), dtype=torch.float64, device=x.device)
    for part in chunks(len(i), 32 * x.shape[1], x.device):
        squares = (x[i[part]].double() - y[j[part]]).square_()
        width = squares.shape[1]
        while width > 1:
            half = (width + 1) // 2
            squares[:, : width - half] += squares[:, half:width]
            width = half
        out[part] = squares[:, 0]
    return out
