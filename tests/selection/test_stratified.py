"""Stratified selection: the same number of every class, as long as there are images of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.base.errors import UslError
from usl_lightning.selection.stratified import select_stratified


@given(labels=st.lists(st.integers(-1, 4), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_classes_take_turns(labels: list[int], seed: int) -> None:
    truth = torch.tensor(labels)
    every = select_stratified(truth, len(labels), seed=seed)
    assert sorted(every.tolist()) == list(range(len(labels)))
    classes, sizes = torch.unique(truth[truth >= 0], return_counts=True)
    order: list[int] = []
    for budget in range(1, len(labels) + 1):
        chosen = select_stratified(truth, budget, seed=seed)
        assert torch.equal(chosen, every[:budget])
        order.append(int(truth[chosen[-1]]))
        counts = torch.tensor([order.count(c) for c in classes.tolist()])
        # A class may lag behind another by one at most, unless it is used up.
        assert all(c >= min(int(counts.max()) - 1, s) for c, s in zip(counts.tolist(), sizes.tolist(), strict=True))
    assert -1 not in order[: int(sizes.sum())]


def test_both_orders_depend_on_the_seed() -> None:
    truth = torch.arange(100) % 10
    picks = [select_stratified(truth, 10, seed=seed) for seed in range(20)]
    assert len({tuple(pick.tolist()) for pick in picks}) == 20
    assert len({tuple((pick % 10).tolist()) for pick in picks}) > 10
    assert {int(i) for pick in picks for i in pick // 10} == set(range(10))


@pytest.mark.parametrize("budget", [0, 4])
def test_bad_budget(budget: int) -> None:
    with pytest.raises(UslError, match=f"budget {budget}: expected a number of images from 1 to 3"):
        select_stratified(torch.zeros(3, dtype=torch.int64), budget)
