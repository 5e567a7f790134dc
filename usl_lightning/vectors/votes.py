"""Learners of few labels, and the mean of what several of them say."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

LEAST = 1e-3
"""Probability that the mean of several is raised to, as none of them is so sure of anything."""


class Learner(Protocol):
    """Learns classes from labelled rows of a feature matrix, in one of several settings."""

    def held_out(self, train: Tensor, settings: Sequence[int] | None = None) -> Tensor:
        """Logits [S, B, m, c] of all labelled rows by what is learned from some of them, `train`, bool [B, m]."""

    def everywhere(self, train: Tensor, setting: int) -> Iterator[Tensor]:
        """Logits [n, c] of all rows by what is learned in one setting from some labelled ones, for each of B."""

    def head(self, setting: int) -> nn.Module:
        """What is learned from all labels: unit features [b, d] -> logits [b, c]."""

    def scores(self, head: nn.Module) -> Tensor:
        """Logits [n, c] of all rows."""


class Votes(nn.Module):
    """Unit features [b, d] -> logits [b, c], whose softmax is the weighted mean of the heads' calibrated probabilities.

    Args:
        heads: each gives logits [b, c].
        unit: they look at features of length 1; False: at features as they are.
    """

    temperatures: Tensor
    temperature: Tensor
    weights: Tensor

    def __init__(self, heads: Sequence[nn.Module], *, unit: bool = True) -> None:
        super().__init__()
        self.unit = unit
        self.heads = nn.ModuleList(heads)
        self.register_buffer("temperatures", torch.ones(len(heads)))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("weights", torch.full((len(heads),), 1 / len(heads)))

    @property
    def inputs(self) -> int:
        """d."""
        return next(value.shape[1] for value in self.heads[0].state_dict().values() if value.dim() == 2)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [b, c]."""
        return self.mixed([head(features) for head in self.heads])

    def mixed(self, logits: Sequence[Tensor]) -> Tensor:
        """What the heads' logits [b, c] come to."""
        probabilities = [(each / t).softmax(-1) for each, t in zip(logits, self.temperatures, strict=True)]
        return log_mean(torch.stack(probabilities), self.weights) / self.temperature


def log_mean(probabilities: Tensor, weights: Tensor) -> Tensor:
    """The logarithm [..., c] of the weighted mean of several probabilities [h, ..., c]; of one alone, of itself.

    Args:
        probabilities: of each of h.
        weights: [h], of sum 1.
    """
    mean = torch.tensordot(weights.to(probabilities), probabilities, 1)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny if len(probabilities) == 1 else LEAST).log()


def margins(probabilities: Tensor) -> Tensor:
    """The difference of the two largest of each row of probabilities [n, c ≥ 2]; [n], 0 to 1."""
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    return first - second
