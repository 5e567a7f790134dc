"""CLD: Cross-Level Instance-Group Discrimination (Wang, Liu and Yu, CVPR 2021), which NPID and MoCo can have beside."""

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.distributed import gather

ITERATIONS = 5
"""Of the k-means of a batch, as published."""


def local_clusters(embeddings: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """k-means of a batch, from its first rows: the cluster of each row, int64 [n], and the means, [K, d].

    As published, the means carry the gradient of their rows, and one that has no rows is 0.

    Args:
        embeddings: [n, d].
        clusters: K, from 1 to n.
    """
    rows = embeddings.detach()
    centres = rows[:clusters]
    labels = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for iteration in range(ITERATIONS):
        half = centres.square().sum(1) / 2
        labels = (rows @ centres.T - half).argmax(1)
        members = embeddings if iteration == ITERATIONS - 1 else rows
        counts = torch.zeros_like(half).index_add_(0, labels, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(centres).index_add(0, labels, members)
        centres = sums / counts.clamp(min=1)[:, None]
    return labels, centres


def group_discrimination(first: Tensor, second: Tensor, *, clusters: int, temperature: float) -> Tensor:
    """Each view's embedding is told to which of the *other* view's clusters its image belongs (Eqs. 4 and 5).

    Args:
        first, second: embeddings of two views of the images of this process, [b, d]; clusters are those of the global
            batch. They need not be normalised.
        clusters: K, at most the images of the global batch.
        temperature: T, above 0.

    Returns:
        A scalar in float32 or better, the mean of both directions over the global batch.
    """
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(first.dtype, torch.float32)
        views = [gather(F.normalize(view.to(dtype), dim=1)) for view in (first, second)]
        (labels1, centres1), (labels2, centres2) = (local_clusters(view, clusters) for view in views)
        one = F.cross_entropy(views[0] @ centres2.T / temperature, labels2)
        other = F.cross_entropy(views[1] @ centres1.T / temperature, labels1)
        return (one + other) / 2


def check_clusters(clusters: int, batch_size: int) -> None:
    """Refuse more clusters than a global batch has images.

    Raises:
        UslError: there are more.
    """
    if clusters > batch_size:
        raise UslError(
            f"model.cld_clusters: {clusters} clusters of a batch of {batch_size} (data.batch_size); use at most "
            f"{batch_size}"
        )
