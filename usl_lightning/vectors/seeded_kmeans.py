"""k-means that some points with a known class guide (Basu et al., "Semi-supervised clustering by seeding", 2002)."""

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.vectors.assignment import Products
from usl_lightning.vectors.distances import check_features, exact_arithmetic


def seeded_kmeans(
    features: Tensor, k: int, rows: Tensor, labels: Tensor, *, seed: int = 0, iterations: int = 300
) -> tuple[Tensor, Tensor]:
    """Constrained seed k-means: a cluster for each class that has seeds, whose seeds never leave it.

    The clusters of the classes come first, in the order of the class numbers, and start at the mean of their seeds; all
    others start at random points that are no seeds. Without seeds it is plain k-means from k random points.

    Args:
        features: [n, d], any float dtype, CPU or CUDA.
        k: clusters, at least the classes that have seeds, at most n.
        rows: int64 [m], the seeds, distinct.
        labels: int64 [m], their classes.
        seed: decides where the other clusters start.
        iterations: at most this many, at least 1; it stops when no cluster changes.

    Returns:
        Clusters, int64 [n] (ties of distance: the lower one), and centroids [k, d], float32 (float64 for float64
        features). A cluster that loses all its points keeps its centroid.

    Raises:
        UslError: k or iterations out of range, or features not finite.
    """
    x = check_features(features)
    rows, labels = rows.to(x.device), labels.to(x.device)
    classes, own = torch.unique(labels, return_inverse=True)
    check_clusters(k, len(classes), len(x))
    if iterations < 1:
        raise UslError(f"iterations={iterations} of constrained seed k-means: expected at least 1")
    with exact_arithmetic(x.device):
        mean = x.mean(0)
        x = x - mean  # distances do not change, rounding errors shrink
        counts = torch.bincount(own, minlength=len(classes))[:, None]
        free = torch.ones(len(x), dtype=torch.bool, device=x.device)
        free[rows] = False
        others = torch.nonzero(free)[:, 0]
        needed = k - len(classes)
        if needed > len(others):  # so few points that a seed may also be where another cluster starts
            others = torch.cat([others, rows])
        starts = others[permutation(len(others), seed, "k-means")[:needed].to(x.device)]
        centroids = torch.cat([_sums(x[rows], own, len(classes)) / counts, x[starts].double()])
        clusters, centroids = _lloyd(x, centroids, rows, own, iterations)
        return clusters, (centroids + mean).to(x.dtype)


def check_clusters(k: int, classes: int, points: int) -> None:
    """Refuse a number of clusters that the classes with seeds, or the points, do not allow.

    Raises:
        UslError: says what it can be.
    """
    if not max(1, classes) <= k <= points:
        raise UslError(
            f"k={k} clusters of constrained seed k-means: expected a number from {max(1, classes)}, the labelled "
            f"classes, to {points}, the images there are"
        )


def _lloyd(x: Tensor, centroids: Tensor, rows: Tensor, own: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Clusters and centroids, from float64 centroids [k, d] on; `rows` stay in the clusters `own`."""
    k, products = len(centroids), Products(x)
    clusters = _assigned(products, centroids, rows, own)
    sums = _sums(x, clusters, k)
    for _ in range(iterations):
        counts = torch.bincount(clusters, minlength=k)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        before, clusters = clusters, _assigned(products, centroids, rows, own)
        moved = torch.nonzero(before != clusters)[:, 0]
        if not len(moved):
            break
        sums += _sums(x[moved], clusters[moved], k) - _sums(x[moved], before[moved], k)
    return clusters, centroids


def _assigned(products: Products, centroids: Tensor, rows: Tensor, own: Tensor) -> Tensor:
    clusters = products.assign(centroids)
    clusters[rows] = own
    return clusters


def _sums(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """The sum of each cluster's points, float64 [k, d], of points [n, d] in clusters int64 [n]."""
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    for rows in chunks(len(x), 16 * (k + x.shape[1]), x.device):
        _add_rows(sums, labels[rows], x[rows].double())
    return sums


def _add_rows(sums: Tensor, labels: Tensor, rows: Tensor) -> None:
    """Add each row to its cluster's sum in a fixed order (atomic additions on a GPU have none)."""
    if sums.device.type == "cpu":
        sums.index_add_(0, labels, rows)
    else:
        one_hot = torch.nn.functional.one_hot(labels, len(sums)).to(rows.dtype)
        sums.addmm_(one_hot.T, rows)
