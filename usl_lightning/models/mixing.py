"""Mixup (Zhang et al., 2018) of the global batch: what the methods that mix images share."""

import itertools
import math

import torch
from torch import Tensor

from usl_lightning.compute.distributed import gather
from usl_lightning.data.keys import Key


def mix_weights(key: Key, *, alpha: float) -> Tensor:
    """max(λ, 1 − λ) with λ ~ Beta(α, α), for each sample one of its own (MixMatch, Eqs. 8 and 9).

    From two uniform numbers u and v: t = √(2α·(u^(−1/α) − 1))·cos 2πv has Student's distribution of 2α degrees of
    freedom (Bailey, 1994), and ½ + ½·t/√(2α + t²) is Beta(α, α) (Devroye, 1996, "in one line of code"). The sign of t
    does not matter here.

    Args:
        key: of b samples.
        alpha: α, above 0; 0.75 as published.

    Returns:
        float32 [b], in [½, 1].
    """
    u, v = key.uniform(2).unbind(1)
    square = ((1 - u).pow(-1 / alpha) - 1) * (2 * math.pi * v).cos().square()  # t²/2α; 1 − u is never 0
    return 0.5 + 0.5 / (1 + 1 / square).sqrt()


def mix(own: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """λ'·own + (1 − λ')·partner (MixMatch, Eqs. 10 and 11).

    Args:
        own, partners: [b, …], images or label distributions.
        weights: λ' [b].
    """
    weights = weights.view(-1, *[1] * (own.dim() - 1)).to(own.dtype)
    return weights * own + (1 - weights) * partners


def partners_of(groups: list[Tensor], keys: list[Key]) -> Tensor:
    """For each row, another of the global batch: all rows of all groups and processes in random order (MixMatch).

    Args:
        groups: this process's rows of each group, [b_g, …]; no gradient flows into partners on other processes.
        keys: of the groups; they say which rows of the global batch these are. The order is drawn from the first.

    Returns:
        [Σ b_g, …], in the order of the groups.
    """
    rows = [gather(group) for group in groups]
    offsets = list(itertools.accumulate((len(group) for group in rows), initial=0))
    everyone = torch.arange(offsets[-1], device=groups[0].device)
    order = Key(keys[0].fold("partners").base, everyone).bits(1)[:, 0].argsort(stable=True)
    own = torch.cat([offset + key.slots for offset, key in zip(offsets, keys, strict=False)])
    return torch.cat(rows)[order[own]]
