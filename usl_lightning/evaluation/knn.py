"""Weighted k-nearest-neighbour classification of features (Wu, Xiong, Yu, Lin, CVPR 2018, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError

CHUNK_ENTRIES = 16 * 2**20
"""Similarities held at once: 64 MB in float32, about three times that with the sorting."""

TEMPERATURE = 0.1
"""T of the votes, unless another is given."""


def weighted_knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 200,
    temperature: float = TEMPERATURE,
    num_classes: int,
) -> Tensor:
    """Class of each query by the votes of its k most similar bank entries, each of weight exp(cos/T).

    Args:
        bank: features [n, d], any float dtype; normalised here.
        bank_labels: int64 [n], 0 … num_classes - 1; entries labelled -1 (unknown) do not vote.
        queries: features [q, d] on the same device; normalised here.
        k: neighbours; all of the labelled entries if there are fewer. 200 is usual on sets of CIFAR's
            size, 20 on small ones.
        temperature: T > 0.
        num_classes: how many classes there are.

    Returns:
        int64 [q]; the lowest class among equal votes.

    Raises:
        UslError: no labelled entry, labels out of range, or k or temperature out of range.
    """
    if k < 1 or temperature <= 0:
        raise UslError(f"k={k}, temperature={temperature} of the kNN classifier: expected k ≥ 1, temperature > 0")
    known = bank_labels >= 0
    bank, bank_labels = bank[known], bank_labels[known]
    if len(bank) == 0 or bank_labels.max() >= num_classes:
        raise UslError(f"labels of the kNN classifier: expected some, from 0 to {num_classes - 1}")
    bank = F.normalize(bank.detach().float(), dim=1)
    k = min(k, len(bank))
    predictions = []
    for part in torch.split(queries.detach(), max(1, CHUNK_ENTRIES // len(bank))):
        similarities = F.normalize(part.float(), dim=1) @ bank.T
        nearest, indices = similarities.topk(k, dim=1)
        weights = ((nearest - nearest[:, :1]) / temperature).exp()  # a common factor less; cannot overflow
        votes = weights.new_zeros(len(part), num_classes).scatter_add_(1, bank_labels[indices], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions) if predictions else bank_labels.new_empty(0)


def neighbour_purity(features: Tensor, labels: Tensor, some: Tensor, *, k: int) -> float:
    """How many of the k most similar images of an image have its class, 0 … 1, on average.

    It is what CMSF's paper calls purity (Navaneet et al., ECCV 2022, section 1).

    Args:
        features: [n, d], any float dtype; normalised here.
        labels: int64 [n]; images labelled -1 (unknown) are nobody's neighbours.
        some: int64 [m], images to look at; those without a label are passed over.
        k: neighbours, at least 1; all other labelled images if there are fewer.

    Returns:
        NaN if fewer than two images have a label, or none of `some`.
    """
    known = torch.nonzero(labels >= 0)[:, 0]
    x, own = F.normalize(features[known].detach().float(), dim=1), labels[known]
    asked = torch.nonzero(torch.isin(known, some.to(known.device)))[:, 0]
    k = min(k, len(known) - 1)
    if k < 1 or not len(asked):
        return float("nan")
    alike = 0.0
    for part in torch.split(asked, max(1, CHUNK_ENTRIES // len(known))):
        similarities = (x[part] @ x.T).scatter_(1, part[:, None], -torch.inf)
        alike += float((own[similarities.topk(k, dim=1).indices] == own[part, None]).sum())
    return alike / (k * len(asked))


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 200,
    num_classes: int,
) -> float:
    """The fraction of queries with a known label (not -1) that `weighted_knn` gets right, 0 … 1; NaN if none."""
    known = query_labels >= 0
    predictions = weighted_knn(bank, bank_labels, queries[known], k=k, num_classes=num_classes)
    return float((predictions == query_labels[known]).double().mean())
