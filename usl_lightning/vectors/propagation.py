"""Label propagation: the labels of a few points spread along the neighbourhoods of all (Zhou et al., NIPS 2003)."""

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import chunks
from usl_lightning.vectors.distances import exact_arithmetic, unit_rows
from usl_lightning.vectors.neighbors import nearest_neighbors

ALPHAS = (0.9, 0.99)
"""How much of a point's value comes from its neighbours: candidates. Zhou et al. and Iscen et al. (CVPR 2019) have
0.99, with which a label goes about 100 neighbours far: too far where classes are small or close."""

POWER = 3
"""Of the cosine, in a neighbour's weight (Iscen et al.)."""

LEAST = 1e-4
"""Share of a class below which it is as good as none, in the logarithms of shares."""


class Graph(NamedTuple):
    """S = D^-½ (W + Wᵀ) D^-½ of n points, with W the weights of each point's nearest neighbours.

    Attributes:
        matrix: sparse [n, n], S.
        degrees: float32 [n], the diagonal of D; 1 for a point without a neighbour of positive cosine.
    """

    matrix: Tensor
    degrees: Tensor


def propagation_graph(features: Tensor, k: int) -> Graph:
    """The graph of Iscen et al. (CVPR 2019, eq. 9): weights max(0, cos)³ of the k nearest neighbours.

    Args:
        features: [n, d], any float dtype; only directions count.
        k: neighbours of each point, itself not among them; all others if there are fewer.

    Raises:
        UslError: k below 1, features that are not finite, or rows of zeros.
    """
    if k < 1:
        raise UslError(f"k={k} neighbours of label propagation: expected at least 1")
    x = unit_rows(features)
    n = len(x)
    edges, weights = torch.zeros(2, 0, dtype=torch.long, device=x.device), torch.zeros(0, device=x.device)
    if n > 1:
        found = nearest_neighbors(x, min(k, n - 1), include_self=False)
        rows = torch.arange(n, device=x.device)[:, None].expand_as(found.indices)
        edges, weights = torch.stack([rows, found.indices]).flatten(1), _weights(found.squared_distances).flatten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on its sparse matrices being young
        both = torch.sparse_coo_tensor(
            torch.cat([edges, edges.flip(0)], 1), weights.repeat(2), (n, n), check_invariants=False
        ).coalesce()
        (from_, to), values = both.indices(), both.values()
        degrees = torch.zeros(n, device=x.device).index_add_(0, from_, values)
        degrees = torch.where(degrees > 0, degrees, 1.0)
        values = values * (degrees[from_] * degrees[to]).rsqrt()
        scaled = torch.sparse_coo_tensor(both.indices(), values, (n, n), is_coalesced=True, check_invariants=False)
        return Graph(scaled.to_sparse_csr(), degrees)


def _weights(squared_distances: Tensor) -> Tensor:
    """max(0, cos)³ of unit vectors at these squared distances."""
    return (1 - squared_distances / 2).clamp_min(0) ** POWER


def propagate(graph: Graph, sources: Tensor, alpha: float, *, tolerance: float = 1e-5, steps: int = 200) -> Tensor:
    """Z of (I − α·S) Z = Y by conjugate gradients.

    Args:
        graph: of n points.
        sources: Y, [n, columns].
        alpha: how much of a value comes from neighbours, from 0 to below 1.
        tolerance: of the residual, relative to Y, in each column.
        steps: at most; with α = 0.99 about 100 gain six digits, as the eigenvalues of I − α·S are from 0.01 to 1.99.

    Returns:
        float32 or float64 [n, columns].
    """
    y = sources if sources.dtype == torch.float64 else sources.float()
    matrix = graph.matrix.to(y.dtype)
    with exact_arithmetic(y.device):
        z, rest = torch.zeros_like(y), y.clone()
        direction, square = rest.clone(), rest.square().sum(0)
        goal, tiny = tolerance**2 * square, torch.finfo(y.dtype).tiny
        for _ in range(steps):
            if bool((square <= goal).all()):
                break
            image = direction - alpha * (matrix @ direction)
            step = square / (direction * image).sum(0).clamp_min(tiny)
            z, rest = z + step * direction, rest - step * image
            before, square = square, rest.square().sum(0)
            direction = rest + square / before.clamp_min(tiny) * direction
        return z


def balanced(labels: Tensor, train: Tensor, num_classes: int) -> Tensor:
    """The column of each class: 1/n_c at its n_c labels, so that no class spreads more than another.

    Args:
        labels: int64 [m].
        train: bool [B, m], which of them count.
        num_classes: c.

    Returns:
        float32 [B, m, c].
    """
    each = F.one_hot(labels, num_classes).float() * train[..., None]
    return each / each.sum(1, keepdim=True).clamp_min(1)


def log_shares(values: Tensor) -> Tensor:
    """Logarithms of the classes' shares of values [..., c]; negative ones are none, and no value at all is all alike.

    None is below that of `LEAST`.
    """
    positive = values.clamp_min(0)
    total = positive.sum(-1, keepdim=True)
    alike = torch.full_like(positive, 1 / values.shape[-1])
    return torch.where(total > 0, positive / torch.where(total > 0, total, 1.0), alike).clamp_min(LEAST).log()


def centred(features: Tensor, mean: Tensor) -> Tensor:
    """Unit rows, from which their mean goes, made unit rows again.

    What all images have in common hides what is alike: the cosines of a published network's features are all high. A
    row without a direction from the mean, as equal rows are, stays as it is.

    Args:
        features: unit rows [n, d].
        mean: [d], of the rows of the set.
    """
    rows = features - mean
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-4, rows / length.clamp_min(1e-4), features)


def nearness(cosines: Tensor) -> Tensor:
    """(½ + ½·cos)⁶: as steep as cos³ near 1, and never 0 for all that is nearest: whatever it is, it counts."""
    return (cosines / 2 + 0.5).clamp_min(1e-3) ** (2 * POWER)


class NeighborHead(nn.Module):
    """Unit features [b, d] -> logarithms of shares [b, c], from the nearest of the points whose values are known.

    The value of a new point is α·Σⱼ Sⱼ·zⱼ over its neighbours, as the equation of `propagate` has it; what they all
    have in common does not matter to shares.

    Args:
        points: n.
        inputs: d.
        outputs: c.
        k: neighbours.
    """

    bank: Tensor
    values: Tensor
    mean: Tensor

    def __init__(self, points: int, inputs: int, outputs: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("bank", torch.zeros(points, inputs, dtype=torch.half))
        self.register_buffer("values", torch.zeros(points, outputs))
        self.register_buffer("mean", torch.zeros(inputs))

    @classmethod
    def like(cls, state: dict[str, Tensor], k: int) -> "NeighborHead":
        """One of the sizes of a state dict, which is yet to be loaded."""
        return cls(len(state["bank"]), state["bank"].shape[1], state["values"].shape[1], k)

    def forward(self, features: Tensor) -> Tensor:
        """Logarithms of the classes' shares, [b, c]."""
        return torch.cat([self._look(features[rows]) for rows in chunks(len(features), 4 * len(self.bank))])

    def _look(self, features: Tensor) -> Tensor:
        cosines = centred(features.to(self.values.dtype), self.mean) @ self.bank.to(self.values.dtype).T
        nearest, indices = cosines.topk(min(self.k, len(self.bank)), dim=1)
        weights = nearest.clamp_min(1e-3)[:, :, None] ** POWER
        return log_shares((weights * self.values[indices]).sum(1))


class PropagationLearner:
    """Label propagation over all points, and from them to new ones.

    What nothing arrives at, as no path leads there from a label, takes the classes of the labels that are nearest.

    Args:
        features: unit rows [n, d], of all images; from here on `centred`.
        rows: int64 [m], those that are labelled.
        labels: int64 [m].
        num_classes: c.
        k: neighbours of each point.
        alphas: of each setting, how much of a value comes from neighbours.
    """

    def __init__(
        self, features: Tensor, rows: Tensor, labels: Tensor, num_classes: int, k: int, alphas: Sequence[float] = ALPHAS
    ) -> None:
        self.rows, self.labels, self.num_classes, self.k, self.alphas = rows, labels, num_classes, k, alphas
        self.mean = features.mean(0)
        self.x = centred(features, self.mean)
        self.graph = propagation_graph(self.x, k)

    def held_out(self, train: Tensor, settings: Sequence[int] | None = None) -> Tensor:
        """Logarithms of shares of the labelled points, by what spreads from some of them.

        The solution is linear in the labels, so one column for each of them has all folds in it.

        Args:
            train: bool [B, m], which labels are known to each of B.
            settings: places in `alphas`; None: all.

        Returns:
            [S, B, m, c].
        """
        chosen = range(len(self.alphas)) if settings is None else settings
        columns = balanced(self.labels, train, self.num_classes)
        near = nearness(self.x[self.rows] @ self.x[self.rows].T) @ columns
        return torch.stack([log_shares(_or(self._among(each) @ columns, near)) for each in chosen])

    def _among(self, setting: int) -> Tensor:
        """[m, m]: how much each labelled point gets from each."""
        if setting not in self._found:
            single = torch.zeros(len(self.x), len(self.rows), device=self.x.device)
            single[self.rows, torch.arange(len(self.rows), device=single.device)] = 1
            self._found[setting] = propagate(self.graph, single, self.alphas[setting])[self.rows]
        return self._found[setting]

    @cached_property
    def _found(self) -> dict[int, Tensor]:
        return {}

    def head(self, setting: int) -> NeighborHead:
        """What spreads from all labels."""
        everything = torch.ones(1, len(self.rows), dtype=torch.bool, device=self.rows.device)
        (values,) = self._values(everything, setting)
        head = NeighborHead(len(self.x), self.x.shape[1], self.num_classes, self.k).to(self.x.device)
        head.bank.copy_(self.x)
        head.mean.copy_(self.mean)
        head.values.copy_(values * self.graph.degrees.rsqrt()[:, None])
        return head

    def everywhere(self, train: Tensor, setting: int) -> Iterator[Tensor]:
        """Logarithms of shares [n, c] of all points by what spreads from some labels, for each of B.

        Args:
            train: bool [B, m], which labels are known to each of B.
            setting: place in `alphas`.
        """
        return (log_shares(values) for values in self._values(train, setting))

    def _values(self, train: Tensor, setting: int) -> Iterator[Tensor]:
        """For each of B the value of each point, [n, c]; of several, by way of a column for each label."""
        columns, alone = balanced(self.labels, train, self.num_classes), len(train) == 1
        values, near = self._spread(columns[0] if alone else torch.eye(len(self.rows), device=self.x.device), setting)
        for each in columns:
            yield _or((values if alone else values @ each).clamp_min(0), near if alone else near @ each)

    def _spread(self, columns: Tensor, setting: int) -> tuple[Tensor, Tensor]:
        """What arrives at each point from columns [m, …] at the labelled ones, and what is near it, [n, …]."""
        sources = torch.zeros(len(self.x), columns.shape[1], device=self.x.device)
        values = propagate(self.graph, sources.index_copy_(0, self.rows, columns), self.alphas[setting])
        parts = chunks(len(self.x), 4 * len(self.rows))
        return values, torch.cat([nearness(self.x[part] @ self.x[self.rows].T) @ columns for part in parts])

    def scores(self, head: nn.Module) -> Tensor:
        """Logarithms of shares [n, c] of all points, as they were solved."""
        assert isinstance(head, NeighborHead)
        return log_shares(head.values)


def _or(values: Tensor, others: Tensor) -> Tensor:
    """Rows of values [..., c], and where next to nothing is in them, rows of others, which count as little."""
    reached = values.amax(-1, keepdim=True) > LEAST**2
    return torch.where(reached, values, LEAST**2 * others)
