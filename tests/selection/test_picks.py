"""Images to keep, and the picks that they displace."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from usl_lightning.vectors.density import keep_first


@given(data=st.data(), n=st.integers(1, 20), seed=st.integers(0, 99))
def test_equals_a_loop(data: st.DataObject, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-2, 3, (n, 2), generator=generator).float()  # with duplicates, so with ties
    order = torch.randperm(n, generator=generator)
    m = data.draw(st.integers(1, n))
    kept = torch.randperm(n, generator=generator)[: data.draw(st.integers(0, m))]
    picks = order[:m]
    left = [p for p in picks.tolist() if p not in kept.tolist()]
    for image in kept.tolist():
        if image not in picks.tolist():
            left.remove(min(left, key=lambda p: float((points[image] - points[p]).square().sum())))
    result = keep_first(kept, picks, points)
    assert result.tolist() == kept.tolist() + left
    assert len(set(result.tolist())) == m


def test_images_without_features_displace_the_first_picks() -> None:
    result = keep_first(torch.tensor([7, 1]), torch.tensor([0, 1, 2, 3]), torch.empty(8, 0))
    assert result.tolist() == [7, 1, 2, 3]
