"""Stratified selection: the same number from every class. It reads all labels, so it is an oracle, not a method."""

from typing import Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import permutation
from usl_lightning.data.modules import ImageData
from usl_lightning.selection.selector import Selector, SelectorOptions
from usl_lightning.vectors.distances import check_budget


def select_stratified(labels: Tensor, budget: int, *, seed: int = 0) -> Tensor:
    """Random images, the same number of every class: how the papers on semi-supervised learning choose their labels.

    Classes take turns in a random order, each with a random image of its own; a class that is used up misses its
    turn. Images without a label come last.

    Args:
        labels: integers [n], -1 where unknown.
        budget: how many, from 1 to n. A larger budget begins with the smaller one's choice.
        seed: decides both orders.

    Returns:
        int64 [budget] on the labels' device, distinct, in order of choice.

    Raises:
        UslError: budget out of range.
    """
    n = len(labels)
    check_budget(budget, n)
    shuffled = permutation(n, seed, "stratified").to(labels.device)
    present, classes = torch.unique(labels[shuffled], return_inverse=True)
    turns = torch.empty_like(classes)  # how many of its class come before an image
    for number in range(len(present)):
        members = torch.nonzero(classes == number)[:, 0]
        turns[members] = torch.arange(len(members), device=labels.device)
    order = permutation(len(present), seed, "order of classes").to(labels.device)
    rank = turns * len(present) + order[classes]
    rank[labels[shuffled] < 0] += n * len(present)
    return shuffled[torch.argsort(rank)][:budget]


class Stratified(Selector):
    """An oracle to compare with: `select_stratified` of the labels of all images.

    Args:
        allow_oracle: read the labels of all images (short: --allow-oracle); nothing is chosen without it.
        options: the budget, where the features come from, and what to keep: see `Selector`.
    """

    needs = ("allow_oracle",)

    def __init__(self, allow_oracle: bool = False, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(**options)
        self.allow_oracle = allow_oracle
        self._labels = torch.empty(0, dtype=torch.int64)

    @property
    def needs_network(self) -> bool:
        """False unless a network is given whose features are to be in the report."""
        return self.has_features and self.features is None

    def evidence(self, data: ImageData) -> Tensor:
        """Features [n, d] for the report, or nothing, [n, 0]; the labels are read here, to choose by.

        Raises:
            UslError: it is not allowed to read them, or there are none.
        """
        if not self.allow_oracle:
            raise UslError(
                "model.allow_oracle: stratified selection reads the labels of all images, which nobody has who needs "
                "a selection; give --allow-oracle to compare with it all the same"
            )
        labels = data.train_source.labels
        if not bool((labels >= 0).any()):
            raise UslError(f"data.dataset: no image of {data.train_source.name} has a label; expected labels to read")
        self._labels = labels
        return super().evidence(data) if self.has_features else torch.empty(len(labels), 0)

    def points(self, evidence: Tensor) -> Tensor:
        """The labels, [n, 1]: a kept image takes the place of a pick of its class."""
        return self._labels[:, None].to(evidence.device)

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_stratified`."""
        return select_stratified(self._labels, self.budget, seed=seed)
