"""Cross-validation over a few labels: who is held out when, and what was then said of it."""

import torch
from torch import Tensor

from usl_lightning.data.keys import permutation


def stratified_folds(labels: Tensor, folds: int, repeats: int, *, seed: int = 0) -> Tensor:
    """The fold of each label in each repeat; those of a class go to folds in turn.

    So numbers differ by one at most, of all labels and of each class.

    Args:
        labels: int64 [m], m ≥ 2.
        folds: how many; m if there are fewer labels.
        repeats: R.
        seed: of the order within a class.

    Returns:
        int64 [R, m], 0 … folds - 1, each of which occurs.
    """
    number = min(folds, len(labels))
    rows = []
    for repeat in range(repeats):
        order = permutation(len(labels), seed, "folds", repeat).to(labels.device)
        order = order[torch.argsort(labels[order], stable=True)]
        fold = torch.empty_like(order)
        fold[order] = torch.arange(len(order), device=order.device) % number
        rows.append(fold)
    return torch.stack(rows)


def training_sets(folds: Tensor) -> Tensor:
    """Which labels are learned from while each fold is held out: bool [R·K, m], repeat by repeat."""
    number = int(folds.max()) + 1
    numbers = torch.arange(number, device=folds.device)
    return (folds[:, None] != numbers[:, None]).flatten(0, 1)


def of_held_out(scores: Tensor, folds: Tensor) -> Tensor:
    """Of the scores [S, R·K, m, c] of all rows by all training sets, those of each row by the one without it.

    Returns:
        [S, R, m, c].
    """
    settings, _, m, classes = scores.shape
    apart = scores.view(settings, len(folds), -1, m, classes)  # [S, R, K, m, c]
    place = folds[None, :, None, :, None].expand(settings, -1, 1, -1, classes)
    return apart.gather(2, place)[:, :, 0]


def known_class(labels: Tensor, train: Tensor) -> Tensor:
    """Whether the class of each row occurs in each training set: bool [B, m].

    Args:
        labels: int64 [m].
        train: bool [B, m].
    """
    same = labels[:, None] == labels
    return (train.float() @ same.float()) > 0
