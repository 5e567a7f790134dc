"""Nearest neighbours: exact up to a size, then among the points of near lists, with the recall measured.

Order is part of the result: neighbours are sorted by (squared distance rounded to float32, index), as if
every distance were computed in float64 from the differences. Ties, duplicates among them, go to the lower
index, and the answer does not depend on how the candidates were found.
"""

import importlib.util
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import shown
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import permutation
from usl_lightning.vectors.distances import check_features, exact_arithmetic, squared_distances
from usl_lightning.vectors.memory import check_memory
from usl_lightning.vectors.near_lists import NearLists

log = logging.getLogger(__name__)

EXACT_UP_TO = 70_000
"""`nearest_neighbors` is exact up to this many points on the CPU (Fashion-MNIST, CIFAR), approximate above."""

SAMPLE = 1_000
"""Random queries that the recall of an approximate index is measured on: its standard error is below 0.005."""

MARGIN = 8
"""More candidates than neighbours, for what rounding in the products may change."""

SMALL = 4_000_000
"""Up to this many pairs, the plain float64 search is used."""

_INDEX_BITS = 0xFFFFFFFF
_ITSELF = -1 << 32  # sorts before every distance
_LAST = torch.iinfo(torch.int64).max

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(queries [q, d], m) -> m candidates: approximate squared distances [q, m] and int64 indices [q, m], -1 if fewer."""


class Neighbors(NamedTuple):
    """The k nearest neighbours of n points.

    Attributes:
        squared_distances: float32 [n, k], ascending.
        indices: int64 [n, k].
        measured_recall: the fraction of true neighbours found on a sample of queries; 1.0 when exact.
    """

    squared_distances: Tensor
    indices: Tensor
    measured_recall: float


def knn(features: Tensor, k: int, *, include_self: bool = True, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact k nearest neighbours by Euclidean distance.

    Args:
        features: [n, d], any float dtype, CPU or CUDA.
        k: how many, from 1 to n (n - 1 if the point itself is dropped).
        include_self: with no `queries`, whether a point is its own first neighbour, at distance 0 (before
            any duplicate of it). Has no effect with `queries`.
        queries: [q, d], whose neighbours among `features` are wanted; by default the features themselves.

    Returns:
        Squared distances, float32 [q, k], relative error below (d/4 + 8)·2^-24 (about 1e-7 in practice), and
        indices, int64 [q, k], sorted by (distance, index).

    Raises:
        UslError: k out of range, features not finite, or queries of another dimension.

    Candidates come from float32 products (faiss on the CPU when it is installed, torch otherwise); each
    row is then proved complete by an error bound, and searched again where that fails: with more candidates,
    in the end in float64. Memory beyond the input and the result: the features twice more in float32, and
    about 0.3 GB on the CPU, 2 GB on a GPU, whatever n is.
    """
    x = check_features(features)
    own = queries is None
    q = x if queries is None else check_features(queries, "queries")
    if q.shape[1] != x.shape[1]:
        raise UslError(f"queries have {q.shape[1]} dimensions, the features {x.shape[1]}; expected the same")
    _check_k(k, len(x) if include_self or not own else len(x) - 1)
    selves = torch.arange(len(x), device=x.device) if own else None
    with exact_arithmetic(x.device):
        if len(x) * len(q) <= SMALL:
            keys = _complete_search(x, q, k, selves, include_self)
        else:
            keys = _certified_search(x, q, k, selves, include_self)
    return _decode(keys)


def approximate_knn(
    features: Tensor, k: int, *, include_self: bool = True, recall: float = 0.95, seed: int = 0
) -> Neighbors:
    """Nearly all of the k nearest neighbours: exactly those among the points of the lists near each point.

    The points are parted into 4√n lists by k-means (`NearLists`); as many lists near a point are looked at as hold the
    share `recall` of the true neighbours of 1,000 random points. Distances and order are as in `knn`, as are arguments,
    results and errors. Where half of the lists do not hold them it is `knn`. Memory: `approximate_memory`.
    """
    x = check_features(features)
    _check_k(k, len(x) if include_self else len(x) - 1)
    check_memory(approximate_memory(len(x), x.shape[1], k), f"{k} neighbours of {len(x)} points")
    with exact_arithmetic(x.device):
        sample = permutation(len(x), seed, "recall")[:SAMPLE].to(x.device)
        truth = _truth(x, sample, k, include_self)
        lists = NearLists(x, seed)
        count = lists.enough(x[sample], truth, recall)
        if 2 * count > len(lists):
            return Neighbors(*knn(x, k, include_self=include_self), measured_recall=1.0)
        log.info("neighbours: among the points of %d of %d lists", count, len(lists))
        distances = torch.empty(len(x), k, device=x.device)
        indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        for rows, candidates in lists.candidates(k + MARGIN, count):
            distances[rows], indices[rows] = _decode(_listed_keys(x, rows, candidates, k, include_self))
    return Neighbors(distances, indices, _recall(indices[sample], truth))


def approximate_memory(n: int, d: int, k: int) -> int:
    """Bytes that `approximate_knn` needs beside features [n, d]: the lists, the sample that they come of, and the
    result; 0.5 GB for chunks."""
    return n * 36 + n * k * 12 + 128 * math.isqrt(n) * 8 * d + 500_000_000


def exact_memory(n: int, d: int, k: int) -> int:
    """Bytes that `knn` needs beside the float32 features [n, d]: two copies, the result and its keys; 0.4 GB."""
    return n * 2 * 4 * d + n * k * 20 + 400_000_000


def nearest_neighbors(features: Tensor, k: int, *, include_self: bool = True) -> Neighbors:
    """`knn` up to 70,000 points or on a GPU, `approximate_knn` above."""
    cpu = features.device.type == "cpu"
    if cpu and len(features) > EXACT_UP_TO:
        return approximate_knn(features, k, include_self=include_self)
    if cpu and features.ndim == 2:
        check_memory(exact_memory(len(features), features.shape[1], k), f"{k} neighbours of {len(features)} points")
    return Neighbors(*knn(features, k, include_self=include_self), measured_recall=1.0)


def _check_k(k: int, available: int) -> None:
    if not 1 <= k <= available:
        raise UslError(f"k={k} neighbours: expected a number from 1 to {available}, the points there are")


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _keys(distances: Tensor, indices: Tensor) -> Tensor:
    """int64 keys that sort as (float32 distance ≥ 0, index): such floats sort as their bits do."""
    return (distances.view(torch.int32).long() << 32) | indices


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    distances = (keys >> 32).clamp_(min=0).int().view(torch.float32)
    return distances, keys & _INDEX_BITS


def _place_self(keys: Tensor, itself: Tensor, include_self: bool) -> None:
    keys[itself] = (keys[itself] & _INDEX_BITS) | _ITSELF if include_self else _LAST


def _complete_search(x: Tensor, q: Tensor, k: int, selves: Tensor | None, include_self: bool) -> Tensor:
    """Keys [q, k] from all pairs in float64."""
    columns = torch.arange(len(x), device=x.device)
    out = torch.empty(len(q), k, dtype=torch.int64, device=x.device)
    for rows in shown(chunks(len(q), 48 * len(x), x.device), "neighbours", len(q)):
        keys = _keys(squared_distances(q[rows], x), columns)
        if selves is not None:
            _place_self(keys, columns == selves[rows, None], include_self)
        out[rows] = keys.topk(k, largest=False, sorted=True).values
    return out


def _refined_keys(x: Tensor, q: Tensor, candidates: Tensor, selves: Tensor | None, include_self: bool) -> Tensor:
    """Sorted keys [q, m] of the candidates [q, m], from differences instead of products.

    faiss takes the differences in float32, many times faster than torch gathers rows; only those too close
    to the next in order are then taken in float64.
    """
    quick = x.dtype == torch.float32 and x.device.type == "cpu" and _has_faiss()
    if quick:
        keys = _keys(_faiss_differences(x, q, candidates), candidates)
    else:
        rows = torch.arange(len(q), device=x.device)[:, None].expand_as(candidates)
        exact = _exact_differences(x, q, rows.reshape(-1), candidates.reshape(-1))
        keys = _keys(exact.view_as(candidates), candidates)
    if selves is not None:
        _place_self(keys, candidates == selves[:, None], include_self)
    keys = keys.sort(1).values
    return _settle_order(keys, x, q).sort(1).values if quick else keys


def _settle_order(keys: Tensor, x: Tensor, q: Tensor) -> Tensor:
    """Sorted keys with those recomputed in float64 whose order float32 differences leave open."""
    distances = _decode(keys)[0]
    close = distances.diff(dim=1) <= (x.shape[1] / 4 + 8) * 2.0**-23 * distances[:, 1:]
    unsettled = (F.pad(close, (1, 0)) | F.pad(close, (0, 1))) & (keys >= 0) & (keys != _LAST)
    rows, columns = torch.nonzero(unsettled).unbind(1)
    indices = keys[rows, columns] & _INDEX_BITS
    keys[rows, columns] = _keys(_exact_differences(x, q, rows, indices), indices)
    return keys


def _faiss_differences(x: Tensor, q: Tensor, candidates: Tensor) -> Tensor:
    """float32 [q, m] squared distances, summed in four lanes or more: relative error below (d/4 + 8)·2^-24."""
    import faiss

    out = torch.empty(candidates.shape)
    arrays = [part.contiguous().numpy() for part in (out, q, x, candidates)]
    pointers = [faiss.swig_ptr(array) for array in arrays]
    faiss.fvec_L2sqr_by_idx(*pointers, x.shape[1], *candidates.shape)  # type: ignore[attr-defined]
    return out


def _exact_differences(x: Tensor, q: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """float32 [p]: squared distances of the pairs (q[rows], x[indices]), computed in float64."""
    out = torch.empty(len(rows), device=x.device)
    for part in chunks(len(rows), 32 * x.shape[1], x.device):
        differences = q[rows[part]].double() - x[indices[part]]
        out[part] = differences.square_().sum(-1).float()
    return out


def _certified_search(x: Tensor, q: Tensor, k: int, selves: Tensor | None, include_self: bool) -> Tensor:
    """Keys [q, k] from float32 candidates, more and more of them until each row is proved complete.

    A float32 |x|² + |y|² - 2xy is within c(|x| + |y|)² of the truth, with c = (5d/8 + 8)·2^-24: d roundings in
    the product, whose factors are |x||y| ≤ (|x| + |y|)²/4, and d/4 in each norm (four lanes or more). A point outside
    the candidates is computed to be at least as far as the last of them; if it is as near as the k-th
    (at τ) then |y| ≤ |x| + √τ, so the row is complete when last - c(2|x| + √τ)² > τ.
    """
    mean = x.mean(0)  # distances do not change, rounding errors shrink
    x32, q32 = ((part - mean).float() for part in (x, q))
    m = k + 1 + max(8, k // 16)
    cpu = x.device.type == "cpu"
    search = _faiss_search(_flat(x32)) if cpu and _has_faiss() else _torch_search(x32)
    c = (0.625 * x.shape[1] + 8) * 2.0**-24
    out = torch.empty(len(q), k, dtype=torch.int64, device=x.device)
    open_rows = torch.arange(len(q), device=x.device)
    while len(open_rows) and m < len(x) // 2:
        doubtful = torch.empty(len(open_rows), dtype=torch.bool, device=x.device)
        for part in shown(chunks(len(open_rows), 64 * m, x.device), "neighbours", len(open_rows)):
            rows = open_rows[part]
            own = None if selves is None else selves[rows]
            rough, candidates = search(q32[rows], m)
            out[rows] = _refined_keys(x, q[rows], candidates, own, include_self)[:, :k]
            tau = _decode(out[rows, -1])[0].double() * (1 + c)
            norm = torch.linalg.vector_norm(q32[rows], dim=1, dtype=torch.float64)
            doubtful[part] = rough[:, -1].double() - c * (2 * norm + tau.sqrt()).square() <= tau
        open_rows, m = open_rows[doubtful], 2 * m
    if len(open_rows):
        own = None if selves is None else selves[open_rows]
        out[open_rows] = _complete_search(x, q[open_rows], k, own, include_self)
    return out


def _torch_search(x: Tensor) -> Search:
    norms = x.square().sum(1)

    def search(q: Tensor, m: int) -> tuple[Tensor, Tensor]:
        rough = torch.empty(len(q), m, device=x.device)
        indices = torch.empty(len(q), m, dtype=torch.int64, device=x.device)
        for rows in chunks(len(q), 8 * len(x), x.device):
            distances = torch.addmm(norms, q[rows], x.T, alpha=-2).add_(q[rows].square().sum(1)[:, None])
            rough[rows], indices[rows] = distances.topk(m, largest=False, sorted=True)
        return rough, indices

    return search


def _flat(x: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    return index


def _faiss_search(index: Any) -> Search:
    def search(q: Tensor, m: int) -> tuple[Tensor, Tensor]:
        rough, indices = index.search(q.float().cpu().numpy(), m)
        return torch.from_numpy(rough), torch.from_numpy(indices)

    return search


def _truth(x: Tensor, sample: Tensor, k: int, include_self: bool) -> Tensor:
    """int64 [q, k]: the neighbours of the points of a sample [q], looked for in a part of all after the other."""
    keys = [sample[:, None] | _ITSELF] if include_self else []
    for part in chunks(len(x), 8 * x.shape[1], x.device):
        rows = x[part]
        found = _certified_search(rows, x[sample], min(k + 1, len(rows)), None, False) + part.start
        keys.append(found.masked_fill_((found & _INDEX_BITS) == sample[:, None], _LAST))
    return _decode(torch.cat(keys, 1).sort(1).values[:, :k])[1]


def _listed_keys(x: Tensor, rows: Tensor, candidates: Tensor, k: int, include_self: bool) -> Tensor:
    """Keys [b, k] of the nearest of the candidates [b, m] of some points; a point that was missed itself is put back,
    and where the lists held too few (-1) all points are searched."""
    missing = (candidates < 0).any(1)
    absent = ~(candidates == rows[:, None]).any(1)
    candidates[absent, -1] = rows[absent]
    keys = _refined_keys(x, x[rows], candidates.clamp_(min=0), rows, include_self)[:, :k]
    if missing.any():
        keys[missing] = _complete_search(x, x[rows[missing]], k, rows[missing], include_self)
    return keys


def _recall(found: Tensor, truth: Tensor) -> float:
    hits = sum(int(torch.isin(a, b).sum()) for a, b in zip(found, truth, strict=True))
    return hits / truth.numel()
