"""Spread, alignment and uniformity: closed forms, and the formulas of the papers term by term."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.evaluation.spread import alignment, feature_std, rankme, uniformity


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 1000))
def test_they_are_the_papers_formulas(n: int, d: int, seed: int) -> None:
    a, b = gaussian(n, d, seed), gaussian(n, d, seed + 1)
    u, v = ([[x / math.hypot(*row) for x in row] for row in part.tolist()] for part in (a, b))

    def squared(p: list[float], q: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(p, q, strict=True))

    pairs = [math.exp(-2 * squared(u[i], u[j])) for i in range(n) for j in range(n) if i != j]
    assert float(uniformity(a)) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-9, abs=1e-9)
    expected = sum(squared(p, q) for p, q in zip(u, v, strict=True)) / n
    assert float(alignment(a, b)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    columns = list(zip(*u, strict=True))
    deviations = [math.sqrt(sum((x - sum(c) / n) ** 2 for x in c) / n) for c in columns]
    assert float(feature_std(a)) == pytest.approx(sum(deviations) / d, rel=1e-9, abs=1e-7)


def test_even_spread_and_collapse() -> None:
    d = 64
    even = gaussian(4000, d)
    assert float(feature_std(even)) == pytest.approx(1 / math.sqrt(d), rel=0.01)
    assert float(uniformity(even)) == pytest.approx(-4 + 8 / d, abs=0.02)  # cosines of variance 1/d
    one = torch.ones(50, d) * torch.rand(50, 1).add(0.1)
    assert float(feature_std(one)) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(one)) == pytest.approx(0, abs=1e-5)
    assert float(alignment(one, one)) == 0
    assert float(alignment(even, -even)) == pytest.approx(4)


def test_length_does_not_matter_and_nothing_flows_back() -> None:
    a, b = gaussian(20, 8).requires_grad_(), gaussian(20, 8, 1)
    lengths = torch.rand(20, 1, dtype=torch.float64) + 0.1
    for found, same in (
        (feature_std(a), feature_std(lengths * a)),
        (uniformity(a), uniformity(lengths * a)),
        (alignment(a, b), alignment(lengths * a, b)),
    ):
        torch.testing.assert_close(found, same)
        assert not found.requires_grad


def test_half_precision_is_computed_in_single() -> None:
    a = gaussian(64, 16).bfloat16()
    assert uniformity(a).dtype == torch.float32
    torch.testing.assert_close(uniformity(a), uniformity(a.float()))
    assert F.normalize(a, dim=1).dtype == torch.bfloat16


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 1000))
def test_rankme_is_the_papers_formula(n: int, d: int, seed: int) -> None:
    """From the eigenvalues of the Gram matrix."""
    x = gaussian(n, d, seed)
    values = torch.linalg.eigvalsh(x @ x.T if n < d else x.T @ x).clamp(min=0).sqrt().tolist()
    shares = [value / sum(values) for value in values if value > 0]
    assert float(rankme(x)) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_rankme_of_one_direction_of_none_and_of_all() -> None:
    assert float(rankme(torch.eye(5))) == pytest.approx(5)
    assert float(rankme(torch.ones(7, 3))) == pytest.approx(1, abs=1e-4)
    assert float(rankme(torch.zeros(7, 3))) == 1
    assert math.isfinite(float(rankme(torch.full((4, 3), math.nan))))
