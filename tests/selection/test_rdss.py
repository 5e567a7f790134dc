"""RDSS against the algorithm written out in NumPy, and against what it minimises."""

import numpy as np
import pytest
import torch
from real_features import NAMES, real_features
from torch import Tensor

from usl_lightning.selection.rdss import median_gamma, select_rdss


def all_kernels(x: Tensor, gamma: float) -> np.ndarray:
    a = x.double().numpy()
    return np.exp(-gamma * ((a[:, None] - a) ** 2).sum(2))


def alpha_mmd(kernel: np.ndarray, chosen: list[int], alpha: float) -> float:
    """Eq. 6, squared."""
    return alpha**2 * kernel.mean() + kernel[np.ix_(chosen, chosen)].mean() - 2 * alpha * kernel[:, chosen].mean()


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, None])
@pytest.mark.parametrize("name", NAMES)
def test_equals_algorithm_1(name: str, alpha: float | None) -> None:
    x = real_features(name, 200)
    m, gamma = 30, 0.8
    kernel = all_kernels(x, gamma)
    used = 1 - 1 / np.sqrt(m) if alpha is None else alpha
    mu, s, chosen = kernel.mean(0), np.zeros(200), []
    for p in range(1, m + 1):
        score = s - used * mu if p > 1 else -mu
        score[chosen] = np.inf
        chosen.append(int(score.argmin()))
        s = (1 - 1 / p) * s + kernel[chosen[-1]] / p
    assert select_rdss(x, m, alpha=alpha, gamma=gamma).tolist() == chosen


@pytest.mark.parametrize("name", NAMES)
def test_its_choice_has_a_smaller_alpha_mmd_than_any_of_many_random_ones(name: str) -> None:
    x = real_features(name, 300)
    kernel, alpha = all_kernels(x, median_gamma(x)), 1 - 20**-0.5
    rng = np.random.default_rng(0)
    others = [alpha_mmd(kernel, list(rng.choice(300, 20, replace=False)), alpha) for _ in range(200)]
    assert alpha_mmd(kernel, select_rdss(x, 20).tolist(), alpha) < min(others)


@pytest.mark.parametrize("name", NAMES)
def test_the_bandwidth_is_the_median_distance(name: str) -> None:
    x = real_features(name, 101)
    a = x.double().numpy()
    pairs = np.linalg.norm(a[:, None] - a, axis=2)[np.triu_indices(101, 1)]
    assert median_gamma(x) == pytest.approx(1 / np.median(pairs) ** 2, rel=1e-2)


def test_a_large_set_is_sampled_by_the_seed() -> None:
    x = torch.nn.functional.normalize(torch.randn(1500, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert median_gamma(x, seed=1) == median_gamma(x, seed=1)
    assert median_gamma(x, seed=1) != median_gamma(x, seed=2)
    assert median_gamma(x[:1].expand(5, 4)) == 1.0
    assert median_gamma(x[:1]) == 1.0
