"""Priors against loops over points and a dense solution; seeds that stay; what is no prior."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import normalize

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import derive_seed
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.priors import Prior, Recipe, Spread, nearest_prior
from usl_lightning.vectors.propagation import centred, propagation_graph
from usl_lightning.vectors.seeded_kmeans import seeded_kmeans


def digits(n: int = 300) -> tuple[Tensor, Tensor]:
    """Unit rows and labels."""
    x, y = load_digits(return_X_y=True)
    return normalize(torch.from_numpy(x[:n]).float()), torch.from_numpy(y[:n]).long()


ROWS = torch.arange(0, 60, 3)


# k-means with seeds --------------------------------------------------------------------------------------


def test_without_seeds_it_is_plain_k_means() -> None:
    x, _ = digits()
    nothing = torch.zeros(0, dtype=torch.long)
    clusters, centroids = seeded_kmeans(x, 12, nothing, nothing, seed=3, iterations=200)
    expected = kmeans(x, 12, seed=3)
    assert torch.equal(clusters, expected[0])
    torch.testing.assert_close(centroids, expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [10, 25])
def test_seeds_never_move_and_all_others_are_nearest(k: int) -> None:
    x, y = digits()
    clusters, centroids = seeded_kmeans(x, k, ROWS, y[ROWS], seed=1)
    classes, own = torch.unique(y[ROWS], return_inverse=True)
    assert torch.equal(clusters[ROWS], own)
    nearest = torch.cdist(x.double(), centroids.double()).argmin(1)
    free = torch.ones(len(x), dtype=torch.bool)
    free[ROWS] = False
    assert torch.equal(clusters[free], nearest[free])
    assert not torch.equal(clusters[ROWS], nearest[ROWS]), "some seed is held against its nearest centroid"
    for cluster in clusters.unique():
        torch.testing.assert_close(centroids[cluster], x[clusters == cluster].mean(0), rtol=1e-5, atol=1e-6)
    assert len(classes) == 10


def test_as_many_clusters_as_points() -> None:
    x, y = digits(30)
    clusters, _ = seeded_kmeans(x, 30, torch.arange(20), y[:20])
    assert int(clusters.max()) < 30


def test_fewer_clusters_than_classes_are_refused() -> None:
    x, y = digits()
    for k in (9, 301):
        with pytest.raises(UslError, match=f"k={k} clusters .*: expected a number from 10, .* to 300"):
            seeded_kmeans(x, k, ROWS, y[ROWS])


# Priors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_shares_of_clusters_are_those_of_a_loop(scaled: bool) -> None:
    x, y = digits()
    rows = ROWS[y[ROWS] != 4]  # a class without a label
    runs = (10, 20, 40)
    prior = Recipe(clusters=runs, scaled=scaled).prior(x, rows, y[rows], 10, seed=5)
    assert (prior.clusters.dtype, prior.clusters.shape, prior.tables.shape) == (torch.int32, (300, 3), (3, 40, 10))
    expected = torch.zeros(300, 10)
    for run, k in enumerate(runs):
        seed = 5 if run == 0 else derive_seed(5, "prior", run)
        clusters, _ = seeded_kmeans(x, k, rows, y[rows], seed=seed)
        for i in range(300):
            members = [int(y[j]) for j in rows.tolist() if clusters[j] == clusters[i]]
            for label in members:
                expected[i, label] += 1 / len(members)
    reached = expected.sum(1, keepdim=True)
    expected /= reached.clamp_min(1) if scaled else len(runs)
    found = prior.rows(torch.arange(300))
    torch.testing.assert_close(found, expected)
    sums = {round(float(value) * len(runs), 4) for value in found.sum(1)}
    assert sums == ({0.0, 3.0} if scaled else {0.0, 1.0, 2.0, 3.0})
    assert bool((found[:, 4] == 0).all())
    assert torch.equal(found[rows].argmax(1), y[rows])
    torch.testing.assert_close(found[rows].amax(1), torch.ones(len(rows)))
    prior.check("it")


def test_the_graph_is_the_dense_solution() -> None:
    x, y = digits(150)
    rows = torch.arange(20)
    prior = Recipe("graph", k=8).prior(x, rows, y[:20], 10, seed=0)
    sources = torch.zeros(150, 10)
    for i in range(20):
        sources[i, y[i]] = 1 / float((y[:20] == y[i]).sum())
    system = torch.eye(150).double() - 0.9 * propagation_graph(centred(x, x.mean(0)), 8).matrix.to_dense().double()
    z = torch.linalg.solve(system, sources.double()).clamp_min(0)
    shares = z / z.sum(1, keepdim=True)
    certainty = 1 - torch.special.entr(shares).sum(1) / math.log(10)
    certainty /= certainty.max()
    found = prior.rows(torch.arange(150)).double()
    rest = torch.arange(20, 150)
    assert float((found[rest].argmax(1) == shares[rest].argmax(1)).double().mean()) > 0.99, "after 20 steps"
    assert float((found[rest].amax(1) - certainty[rest]).abs().max()) < 0.001
    assert torch.equal(found[rows], torch.nn.functional.one_hot(y[:20], 10).double())


def test_the_nearest_is_that_of_all_pairs() -> None:
    x, y = digits()
    found = nearest_prior(x, ROWS, y[ROWS], 10).rows(torch.arange(300))
    nearest = y[ROWS][torch.cdist(x, x[ROWS]).argmin(1)]
    assert torch.equal(found, torch.nn.functional.one_hot(nearest, 10).float())


@pytest.mark.parametrize("spread", ["clusters", "graph", "nearest"])
def test_a_prior_is_compact_and_repeats(spread: Spread) -> None:
    x, y = digits()
    first, again = (Recipe(spread).prior(x, ROWS, y[ROWS], 10, seed=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.clusters.shape[1] == (6 if spread == "clusters" else 1)
    accuracy = float((first.rows(torch.arange(300)).argmax(1) == y).double().mean())
    assert accuracy > 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": torch.full((1, 2, 3), 0.4)}, "shares of 4 images add up to more than 1, image 0 to 1.2"),
        ({"tables": torch.tensor([[[0.0, -0.1, 0.0], [0.0, 0.0, 1.0]]])}, "negative"),
        ({"tables": torch.tensor([[[0.0, math.nan, 0.0], [0.0, 0.0, 1.0]]])}, "not finite"),
        ({"weights": torch.tensor([1.0, math.inf, 1.0, 1.0])}, "not finite"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "negative"),
        ({"clusters": torch.tensor([[0], [2], [0], [0]])}, "do not fit together"),
        ({"weights": torch.ones(3)}, "do not fit together"),
    ],
)
def test_what_is_no_prior_is_refused(change: dict[str, Tensor], message: str) -> None:
    whole = {
        "clusters": torch.tensor([[0], [1], [1], [0]]),
        "tables": torch.tensor([[[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]]),
        "weights": torch.ones(4),
    }
    Prior(**whole).check("it")
    with pytest.raises(UslError, match=message):
        Prior(**{**whole, **change}).check("it")


def test_the_neighbours_of_a_graph_as_used() -> None:
    found = [Recipe("graph").neighbours(points) for points in (5, 100, 1437, 50_000)]
    assert found == [4, 10, 14, 50]
