"""How well clusters agree with classes. For reports only."""

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError


def cluster_metrics(clusters: Tensor, labels: Tensor, *, num_clusters: int | None = None) -> dict[str, float]:
    """Agreement of a clustering with known classes, and the sizes of the clusters.

    Args:
        clusters: integers [n], ≥ 0.
        labels: integers [n]; points labelled -1 count for the sizes alone.
        num_clusters: how many there could be; None: the highest number + 1.

    Returns:
        `nmi` (normalised mutual information, arithmetic mean), `ari` (adjusted Rand index), `many_to_one`
        (see `many_to_one_accuracy`): NaN if no label is known; `clusters` (non-empty ones), `largest` and
        `smallest` (points in a cluster, empty ones included).

    Raises:
        UslError: lengths that differ, or no points.
    """
    _check(clusters, labels)
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    sizes = torch.bincount(clusters, minlength=num_clusters or 0)
    known = labels >= 0
    pair = labels[known].cpu().numpy(), clusters[known].cpu().numpy()
    some = bool(known.any())
    return {
        "nmi": float(normalized_mutual_info_score(*pair)) if some else float("nan"),
        "ari": float(adjusted_rand_score(*pair)) if some else float("nan"),
        "many_to_one": many_to_one_accuracy(clusters, labels),
        "clusters": float((sizes > 0).sum()),
        "largest": float(sizes.max()),
        "smallest": float(sizes.min()),
    }


def many_to_one_accuracy(clusters: Tensor, labels: Tensor) -> float:
    """The fraction of points in their cluster's most common class (purity), 0 … 1; NaN if no label is known.

    Args:
        clusters: integers [n], ≥ 0.
        labels: integers [n]; points labelled -1 do not count.
    """
    _check(clusters, labels)
    known = labels >= 0
    if not known.any():
        return float("nan")
    rows = torch.unique(clusters[known], return_inverse=True)[1]
    columns = torch.unique(labels[known], return_inverse=True)[1]
    width = int(columns.max()) + 1
    table = torch.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width).view(-1, width)
    return float(table.max(1).values.sum()) / int(known.sum())


def adjusted_mutual_information(clusters: Tensor, labels: Tensor) -> float:
    """Mutual information less that of chance, over its largest value (arithmetic mean); NaN if no label is known.

    Vinh, Epps and Bailey, JMLR 2010. Takes seconds for thousands of clusters.

    Args:
        clusters: integers [n], ≥ 0.
        labels: integers [n]; points labelled -1 do not count.
    """
    _check(clusters, labels)
    from sklearn.metrics import adjusted_mutual_info_score

    known = labels >= 0
    if not known.any():
        return float("nan")
    return float(adjusted_mutual_info_score(labels[known].cpu().numpy(), clusters[known].cpu().numpy()))


def class_entropies(clusters: Tensor, labels: Tensor) -> Tensor:
    """Entropy in nats of the classes within each cluster, float64 [highest number + 1]; 0 where all are of one class.

    Args:
        clusters: integers [n], ≥ 0.
        labels: integers [n]; points labelled -1 do not count.

    Returns:
        NaN for a cluster without a point of known class.
    """
    _check(clusters, labels)
    known = labels >= 0
    count, width = int(clusters.max()) + 1, int(labels.max().clamp(min=0)) + 1
    table = torch.bincount(clusters[known] * width + labels[known], minlength=count * width).view(count, width).double()
    total = table.sum(1, keepdim=True)
    return torch.special.entr(table / total).sum(1)


def _check(clusters: Tensor, labels: Tensor) -> None:
    if len(clusters) == 0 or clusters.shape != labels.shape:
        raise UslError(
            f"clusters {list(clusters.shape)} and labels {list(labels.shape)}: expected one of each for every point"
        )
