import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_features import NAMES, real_features
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.distributed import Share
from usl_lightning.data.keys import permutation
from usl_lightning.vectors import assignment, kmeans_bounds
from usl_lightning.vectors import kmeans as module
from usl_lightning.vectors.assignment import nearest_centroid
from usl_lightning.vectors.kmeans import kmeans


def slow_lloyd(x: Tensor, k: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    a = x.double().numpy()
    centroids = a[permutation(len(a), seed, "k-means")[:k].numpy()].copy()
    for _ in range(iterations):
        labels = ((a[:, None] - centroids) ** 2).sum(2).argmin(1)
        for c in range(k):
            if (labels == c).any():
                centroids[c] = a[labels == c].mean(0)
    return ((a[:, None] - centroids) ** 2).sum(2).argmin(1), centroids


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_equals_slow_lloyd_on_real_features(name: str, seed: int) -> None:
    x = real_features(name, 600)
    labels, centroids = kmeans(x, 12, seed=seed, iterations=8)
    slow_labels, slow_centroids = slow_lloyd(x, 12, seed, 8)
    np.testing.assert_array_equal(labels.numpy(), slow_labels)
    np.testing.assert_allclose(centroids.numpy(), slow_centroids, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bounds_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = real_features(name)
    monkeypatch.setattr(module, "BOUNDS_FROM", 2)
    monkeypatch.setattr(module, "GROUP_SIZE", 6)
    monkeypatch.setattr(assignment, "BLOCK_BYTES", 2**14)
    quick_labels, quick_centroids = kmeans(x, 60, seed=1, iterations=40)
    monkeypatch.setattr(module, "_assignment", lambda x, centroids, seed: assignment.Products(x))
    labels, centroids = kmeans(x, 60, seed=1, iterations=40)
    assert torch.equal(labels, quick_labels)
    assert torch.equal(centroids, quick_centroids)


@pytest.mark.parametrize(("k", "most"), [(60, 0.5), (10, 0.5)])
def test_bounds_spare_most_products(k: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = real_features("digits")
    compared: list[int] = []
    two_least = kmeans_bounds.two_least

    def counted(scores: Tensor) -> Any:
        compared.append(scores.numel())
        return two_least(scores)

    monkeypatch.setattr(kmeans_bounds, "two_least", counted)
    monkeypatch.setattr(module, "BOUNDS_FROM", 2)
    monkeypatch.setattr(module, "GROUP_SIZE", 6)
    kmeans(x, k, iterations=20)
    assert len(x) * k <= sum(compared) < most * 21 * len(x) * k


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(2, 40),
    k=st.integers(2, 40),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
    values=st.integers(1, 9),
)
def test_bounds_with_duplicates_and_lonely_groups(n: int, k: int, size: int, seed: int, values: int) -> None:
    """Few distinct values: many exact ties, and groups of one centroid."""
    generator = torch.Generator().manual_seed(seed)
    x, k = torch.randint(-values, values + 1, (n, 2), generator=generator).float(), min(k, n)
    groups = torch.unique(torch.randint(0, -(-k // size), (k,), generator=generator), return_inverse=True)[1]
    bounds = kmeans_bounds.GroupBounds(x, groups)
    centroids = x[torch.randperm(n, generator=generator)[:k]].double()
    for _ in range(8):
        labels = bounds.assign(centroids)
        assert torch.equal(labels, nearest_centroid(x, centroids))
        moves = torch.randint(-2, 3, (k, 2), generator=generator) / 4
        centroids = centroids + moves * (torch.rand(k, 1, generator=generator) < 0.5)


def test_stops_at_the_fixed_point(caplog: pytest.LogCaptureFixture) -> None:
    x = real_features("digits")
    with caplog.at_level("INFO"):
        labels, centroids = kmeans(x, 10, seed=3)
    assert "converged after" in caplog.text
    assert torch.equal(nearest_centroid(x, centroids), labels)
    means = torch.stack([x[labels == c].double().mean(0) for c in range(10)])
    torch.testing.assert_close(centroids.double(), means, atol=1e-6, rtol=0)
    with caplog.at_level("INFO"):
        kmeans(x, 10, seed=3, iterations=2)
    assert "stopped after 2 iterations" in caplog.text


def test_seed_decides_and_repeats() -> None:
    x = real_features("patches")
    first, again, other = (kmeans(x, 20, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_empty_clusters_stay_and_keep_their_centroid() -> None:
    x = torch.cat([torch.zeros(50, 2), torch.ones(3, 2)])
    labels, centroids = kmeans(x, 20)
    assert 1 <= len(labels.unique()) <= 2
    assert torch.isfinite(centroids).all()
    assert {tuple(row) for row in centroids.tolist()} <= {(0.0, 0.0), (1.0, 1.0)} | {(3 / 53, 3 / 53)}


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 30), seed=st.integers(0, 9), same=st.booleans())
def test_every_size(n: int, k: int, seed: int, same: bool) -> None:
    x = torch.ones(n, 3) if same else torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    if k > n:
        with pytest.raises(UslError, match=f"k={k} clusters: expected a number from 1 to {n}"):
            kmeans(x, k)
        return
    labels, centroids = kmeans(x, k, seed=seed)
    assert labels.shape == (n,)
    assert centroids.shape == (k, 3)
    assert labels.min() >= 0
    assert labels.max() < k
    if k == n and not same:
        assert len(labels.unique()) == n


def test_a_large_mean_costs_no_accuracy() -> None:
    x = real_features("digits", 500)
    assert torch.equal(kmeans(x.double(), 10)[0], kmeans((x.double() + 1000).double(), 10)[0])
    shifted = (64 * x).round()
    assert torch.equal(kmeans(shifted, 10)[0], kmeans(shifted + 4096, 10)[0])


def test_bad_input() -> None:
    with pytest.raises(UslError, match="iterations=0, restarts=1 of k-means"):
        kmeans(torch.ones(4, 2), 2, iterations=0)
    with pytest.raises(UslError, match="NaN or infinite values in row 2"):
        kmeans(torch.tensor([[0.0], [1.0], [float("nan")]]), 2)


# Restarts ------------------------------------------------------------------------------------------------


def inertia(x: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor) -> float:
    return float((x.double() - centroids[labels].double()).square().sum())


def test_the_best_of_several_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least inertia of the starts taken one by one; the first of them is that of a single start."""
    x = real_features("digits", 300)
    found: list[float] = []
    inner = module._inertia

    def watch(*arguments: Any) -> float:
        found.append(inner(*arguments))
        return found[-1]

    monkeypatch.setattr(module, "_inertia", watch)
    best = inertia(x, *kmeans(x, 12, seed=3, restarts=8))
    assert len(found) == 8
    spread = float((x.double() - x.double().mean(0)).square().sum())  # without clusters
    assert best == pytest.approx(spread + min(found), rel=1e-4)
    assert spread + found[0] == pytest.approx(inertia(x, *kmeans(x, 12, seed=3)), rel=1e-4)
    assert min(found) < found[0]


def test_restarts_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    x = real_features("digits", 400)
    whole = inertia(x, *kmeans(x, 5, restarts=10))
    monkeypatch.setattr(module, "SAMPLE", 150)
    labels, centroids = kmeans(x, 5, restarts=10)
    assert torch.equal(labels, nearest_centroid(x - x.mean(0), centroids - x.mean(0)))
    assert inertia(x, labels, centroids) < 1.05 * whole
    again, _ = kmeans(x, 5, restarts=10)
    assert torch.equal(labels, again)


# Momentum ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 4, 12])
def test_momentum_equals_a_slow_heavy_ball(iterations: int) -> None:
    x = real_features("digits", 300)
    points = module.Points(x, Share(len(x), x.device, False))
    start = points.x[:12].double()
    labels, centroids, converged = module._lloyd(points, start, 0, iterations, 0.8)
    rows, slow, before = points.x[:].double().numpy(), start.numpy(), start.numpy()
    for iteration in range(1, iterations + 1):
        nearest = ((rows[:, None] - slow) ** 2).sum(2).argmin(1)
        means = np.stack([rows[nearest == c].mean(0) for c in range(12)])
        pushed = means + 0.8 * (slow - before) if iteration <= iterations - 2 else means
        before, slow = slow, pushed
    assert not converged
    np.testing.assert_array_equal(labels.numpy(), ((rows[:, None] - slow) ** 2).sum(2).argmin(1))
    np.testing.assert_allclose(centroids.numpy(), slow, atol=1e-9)


def test_momentum_ends_at_a_fixed_point() -> None:
    x = real_features("digits", 300)
    points = module.Points(x, Share(len(x), x.device, False))
    labels, centroids, converged = module._lloyd(points, points.x[:12].double(), 0, 500, 0.8)
    assert converged
    means = torch.stack([points.x[labels == c].double().mean(0) for c in range(12)])
    torch.testing.assert_close(centroids, means, atol=1e-9, rtol=0)


def test_many_points_end_lower_in_fewer_iterations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = real_features("digits")
    plain = [inertia(x, *kmeans(x, 5, seed=seed, iterations=80)) for seed in range(4)]
    monkeypatch.setattr(module, "SAMPLE", len(x) // 16)
    caplog.clear()
    with caplog.at_level("INFO"):
        quick = [inertia(x, *kmeans(x, 5, seed=seed, iterations=80)) for seed in range(4)]
    taken = [int(number) for number in re.findall(r"(?:converged|stopped) after (\d+) iterations", caplog.text)]
    assert len(taken) == 4
    assert max(taken) <= 10
    assert sum(quick) < 1.005 * sum(plain)
