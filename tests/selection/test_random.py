import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.base.errors import UslError
from usl_lightning.selection.random import select_random


@given(n=st.integers(1, 50), budget=st.integers(1, 50), seed=st.integers(0, 99))
def test_distinct_nested_and_blind_to_the_features(n: int, budget: int, seed: int) -> None:
    if budget > n:
        with pytest.raises(UslError, match=f"budget {budget}: expected a number of images from 1 to {n}"):
            select_random(n, budget, seed=seed)
        return
    chosen = select_random(n, budget, seed=seed)
    assert len(set(chosen.tolist())) == len(chosen) == budget
    assert torch.equal(chosen, select_random(torch.randn(n, 2), budget, seed=seed))
    assert torch.equal(chosen, select_random(n, n, seed=seed)[:budget])


def test_uniform() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[select_random(10, 3, seed=seed)] += 1
    # Each index is drawn 600 times in expectation, with a standard deviation of 20.
    assert (counts - 600).abs().max() < 100
