"""The selectors people would use instead of USL: each against a slow version, and all on every size and budget.

That their stages repeat, keep, and survive a kill is asked in `test_methods.py`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_features import NAMES, real_features
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compare.spec import selector_names
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import permutation
from usl_lightning.selection.activeft import select_activeft
from usl_lightning.selection.as3l import select_as3l
from usl_lightning.selection.coreset import select_coreset
from usl_lightning.selection.density import select_density
from usl_lightning.selection.kmeans_nearest import WIDTH, select_kmeans_nearest
from usl_lightning.selection.kmedoids import select_kmedoids
from usl_lightning.selection.maxherding import select_maxherding
from usl_lightning.selection.probcover import ProbCover, pure_radius, select_probcover
from usl_lightning.selection.rdss import select_rdss
from usl_lightning.selection.typiclust import TypiClust, select_typiclust
from usl_lightning.vectors.density import density_distance
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.kmeans import kmeans


def discovered() -> dict[str, Callable[..., Tensor]]:
    """Name -> function, of every selector that chooses by features and a budget alone."""
    found = {}
    for name, path in selector_names().items():
        select = vars(import_module(path.rpartition(".")[0])).get(f"select_{name}")
        if select is not None and list(inspect.signature(select).parameters)[:2] == ["features", "budget"]:
            found[name] = select
    return found


FASTER = {"activeft": {"iterations": 10}, "as3l": {"epochs": 2, "clusterings": 3}}
SELECTORS: dict[str, Callable[..., Tensor]] = {
    **{name: partial(select, **FASTER.get(name, {})) for name, select in discovered().items()},
    "probcover_small_radius": partial(select_probcover, delta=0.05),
    "typiclust_few_clusters": partial(select_typiclust, max_clusters=3),
}


def all_distances(x: Tensor) -> np.ndarray:
    a = x.double().numpy()
    return np.sqrt(((a[:, None] - a) ** 2).sum(2))


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 22),
    share=st.floats(0, 1),
    kind=st.sampled_from(["random", "duplicates", "equal"]),
    seed=st.integers(0, 9),
)
def test_always_exactly_the_budget(name: str, n: int, share: float, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    x = {"random": x, "duplicates": x[torch.randint(max(1, n // 3), (n,), generator=generator)], "equal": x[:1]}[kind]
    budget = 1 + round(share * (n - 1))
    chosen = SELECTORS[name](x.expand(n, 3), budget, seed=seed)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == len(chosen) == budget
    assert min(chosen) >= 0
    assert max(chosen) < n


@pytest.mark.parametrize("name", SELECTORS)
def test_every_budget_of_a_real_set(name: str) -> None:
    x = real_features("cells", 40)
    for budget in range(1, 41):
        chosen = SELECTORS[name](x, budget).tolist()
        assert len(set(chosen)) == len(chosen) == budget


@pytest.mark.parametrize("name", SELECTORS)
def test_same_choice_again_whatever_the_scale(name: str) -> None:
    x = real_features("digits", 300)
    first = SELECTORS[name](x, 12, seed=3)
    assert torch.equal(first, SELECTORS[name](4 * x, 12, seed=3))


@pytest.mark.parametrize("name", ["activeft", "as3l", "coreset", "kmeans_nearest", "kmedoids", "typiclust"])
def test_the_seed_matters(name: str) -> None:
    x = real_features("digits", 300)
    assert not torch.equal(SELECTORS[name](x, 12, seed=0), SELECTORS[name](x, 12, seed=1))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("budget", [0, 51])
def test_bad_budget(name: str, budget: int) -> None:
    with pytest.raises(UslError, match=f"budget {budget}: expected a number of images from 1 to 50"):
        SELECTORS[name](real_features("digits", 50), budget)


@pytest.mark.parametrize("name", SELECTORS)
def test_bad_features(name: str) -> None:
    x = real_features("digits", 50).clone()
    x[7, 0] = torch.nan
    with pytest.raises(UslError, match="NaN or infinite values in row 7"):
        SELECTORS[name](x, 5)


@pytest.mark.parametrize("name", NAMES)
def test_density_takes_the_densest(name: str) -> None:
    x = real_features(name, 300)
    distances = density_distance(x, 20).tolist()
    assert select_density(x, 30, k=20).tolist() == sorted(range(300), key=lambda i: (distances[i], i))[:30]


@pytest.mark.parametrize("name", NAMES)
def test_kmeans_nearest_equals_a_loop(name: str) -> None:
    x = real_features(name, 300)
    labels, centroids = kmeans(x, 12, seed=2, restarts=20)
    distances = np.linalg.norm(x.numpy() - centroids.numpy()[labels], axis=1)
    expected = []
    for c in labels.unique().tolist():
        members = np.flatnonzero(labels.numpy() == c)
        expected.append(int(members[distances[members].argmin()]))
    assert select_kmeans_nearest(x, 12, seed=2)[: len(expected)].tolist() == expected


def moved_by_loops(x: np.ndarray, picks: list[int], labels: np.ndarray, rms: float, factor: float) -> list[int]:
    """The rule of `move`, read slowly."""
    near = np.exp(-((x[:, None] - x[None]) ** 2).sum(2) / (WIDTH * rms**2))
    for _ in range(10):
        covers = near[:, picks]
        best, second = -np.sort(-covers, 1)[:, :2].T
        worth = [(best - second)[covers.argmax(1) == label].sum() for label in range(len(picks))]
        between = near[np.ix_(picks, picks)] - 2 * np.eye(len(picks))
        places = []
        for cluster in range(labels.max() + 1):
            members = np.flatnonzero(labels == cluster)
            gains = [np.maximum(near[place, members] - best[members], 0).sum() for place in members]
            places.append((max(gains), int(members[int(np.argmax(gains))])))
        places.sort(key=lambda place: -place[0])
        asleep: set[int] = set()
        before = list(picks)
        for label in np.argsort(worth, kind="stable"):
            other = int(between[label].argmax())
            if places and places[0][0] > factor * worth[label] and not {int(label), other} & asleep:
                picks[label] = places.pop(0)[1]
                asleep |= {int(label), other}
        if picks == before:
            break
    return picks


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_labels_move_to_copies(factor: float) -> None:
    """Two dozen digits are there ten times: more of them are found; where none is, all stays as it was."""
    some = real_features("digits", 300)
    copies = some[100:124].repeat(9, 1)
    x = torch.cat([some, copies])
    plain = select_kmeans_nearest(x, 16, seed=1, restarts=1)
    chosen = select_kmeans_nearest(x, 16, seed=1, restarts=1, move=factor)
    labels, centroids = kmeans(x, 16, seed=1)
    rms = float((x - centroids[labels]).square().sum(1).double().mean().sqrt())
    expected = moved_by_loops(x.double().numpy(), plain.tolist(), labels.numpy(), rms, factor)
    assert torch.equal(x[chosen], x[expected])
    assert len(set(chosen.tolist())) == 16

    def found(picks: torch.Tensor) -> int:
        return sum(bool((x[picks] == copy).all(1).any()) for copy in copies[:24])

    assert found(chosen) > found(plain)
    if factor == 4:
        assert torch.equal(select_kmeans_nearest(some, 16, move=4.0), select_kmeans_nearest(some, 16))


def test_no_label_moves_where_all_images_are_alike_or_there_is_one_label() -> None:
    x = real_features("digits", 50)
    assert torch.equal(select_kmeans_nearest(x, 1, move=1.0), select_kmeans_nearest(x, 1))
    assert select_kmeans_nearest(x[:1].repeat(9, 1), 3, move=1.0).unique().numel() == 3
    with pytest.raises(UslError, match=r"move=0.5: expected None or a number of times of at least 1"):
        select_kmeans_nearest(x, 3, move=0.5)


def test_a_cluster_that_is_too_large_to_compare_all_of_it_gains_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    some = real_features("digits", 300)
    x = torch.cat([some, some[100:124].repeat(9, 1)])
    monkeypatch.setattr("usl_lightning.selection.kmeans_nearest.LARGEST", 0)
    assert torch.equal(select_kmeans_nearest(x, 16, seed=1, move=1.0), select_kmeans_nearest(x, 16, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_coreset_equals_a_loop(name: str) -> None:
    x = real_features(name, 300)
    d = all_distances(x)
    chosen = [int(permutation(300, 5, "coreset")[0])]
    while len(chosen) < 25:
        chosen.append(int(d[:, chosen].min(1).argmax()))
    assert select_coreset(x, 25, seed=5).tolist() == chosen


@pytest.mark.parametrize("name", NAMES)
def test_kmedoids_equals_a_loop(name: str) -> None:
    x = real_features(name, 200)
    d = all_distances(x)
    medoids = permutation(200, 1, "k-medoids")[:8].tolist()
    for _ in range(100):
        labels = d[:, medoids].argmin(1)
        before, medoids = medoids, []
        for c in range(8):
            members = np.flatnonzero(labels == c)
            medoids.append(int(members[d[np.ix_(members, members)].sum(1).argmin()]))
        if medoids == before:
            break
    assert select_kmedoids(x, 8, seed=1).tolist() == medoids


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_typiclust_equals_a_loop(name: str, squared: bool) -> None:
    x = real_features(name, 300)
    d = all_distances(x) ** (2 if squared else 1)
    labels = kmeans(x, 30, seed=4)[0].tolist()
    left = {c: [i for i in range(300) if labels[i] == c] for c in set(labels)}
    order = sorted(left, key=lambda c: (-len(left[c]), c))
    large = [c for c in order if len(left[c]) > 5]
    chosen: list[int] = []
    while len(chosen) < 30:
        for c in large:
            if len(chosen) < 30 and len(left[c]) > 1:
                k = min(20, len(left[c]) // 2)
                typical = [np.sort(d[i, [j for j in left[c] if j != i]])[:k].mean() for i in left[c]]
                chosen.append(left[c].pop(int(np.argmin(typical))))
    assert select_typiclust(x, 30, seed=4, squared=squared).tolist() == chosen


def test_typiclust_takes_the_best_of_several_starts() -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = []
    for restarts in (1, 20):
        select_typiclust(x, 12, seed=1, restarts=restarts, on_clusters=found.append)
        expected, _ = kmeans(unit_rows(x), 12, seed=1, restarts=restarts)
        assert torch.equal(found[-1], expected)
    assert not torch.equal(*found)


def test_typiclust_tells_the_k_it_used(caplog: pytest.LogCaptureFixture) -> None:
    x = real_features(NAMES[0], 100)
    method = TypiClust(image=ImageSpec(1, 8, 8, (0.5,), (0.5,)), budget=5, features="x.npy", k=3000)
    with caplog.at_level("INFO"):
        method.choose(x, seed=0)
    largest = int(torch.bincount(kmeans(x, 5, seed=0, iterations=200)[0]).max())
    assert f"TypiClust: k = {largest // 2} instead of 3000, half of the largest cluster" in caplog.text
    assert method.settled(100) == {"k": largest // 2}
    assert TypiClust(image=ImageSpec(1, 8, 8, (0.5,), (0.5,)), budget=5, features="x.npy").settled(100) == {"k": 20}


def test_probcover_records_the_radius_it_chose() -> None:
    x, image = real_features(NAMES[0], 100), ImageSpec(1, 8, 8, (0.5,), (0.5,))
    for clusters, used in ((None, 10), (7, 7)):
        method = ProbCover(image=image, budget=5, features="x.npy", clusters=clusters)
        chosen = method.choose(x, seed=0)
        radius = pure_radius(unit_rows(x), used)
        assert method.settled(100) == {"delta": radius, "clusters": used}
        again = ProbCover(image=image, budget=5, features="x.npy", delta=radius)
        assert torch.equal(again.choose(x, seed=0), chosen)
        assert again.settled(100) == {"delta": radius}


@pytest.mark.parametrize("delta", [0.2, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_probcover_equals_a_loop(name: str, delta: float) -> None:
    x = real_features(name, 200)
    edges = all_distances(x) < delta
    uncovered, chosen = np.ones(200, bool), []
    for _ in range(60):
        if not uncovered.any():
            uncovered[:] = True
        degrees = (edges & uncovered).sum(1)
        degrees[chosen] = -1
        chosen.append(int(degrees.argmax()))
        uncovered &= ~edges[chosen[-1]]
    assert select_probcover(x, 60, delta=delta).tolist() == chosen


@pytest.mark.parametrize("name", NAMES)
def test_pure_radius_is_the_largest_pure_enough(name: str) -> None:
    x = real_features(name, 300)
    labels = kmeans(x, 10, seed=0)[0].numpy()
    d = all_distances(x)

    def purity(delta: float) -> float:
        return float(np.mean([(labels[d[i] < delta] == labels[i]).all() for i in range(300)]))

    delta = pure_radius(x, 10, purity=0.9)
    assert purity(delta * (1 - 1e-5)) >= 0.9 > purity(delta * (1 + 1e-5))
    assert pure_radius(x, 1) == float("inf")


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_maxherding_has_the_highest_gain(name: str) -> None:
    x = real_features(name, 200)
    kernel = np.exp(-(all_distances(x) ** 2) / 0.5**2)
    covered = np.zeros(200)
    for pick in select_maxherding(x, 150, sigma=0.5).tolist():
        gains = np.maximum(kernel - covered, 0).sum(1)
        assert gains[pick] >= gains.max() - 1e-5  # two points that cover each other tie but for rounding
        covered = np.maximum(covered, kernel[pick])


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (partial(select_probcover, delta=0.0), "delta=0.0: expected a radius above 0"),
        (partial(select_probcover, purity=1.5), "purity=1.5: expected a fraction"),
        (partial(select_maxherding, sigma=0.0), "sigma=0.0: expected a kernel width above 0"),
        (partial(select_kmedoids, iterations=0), "iterations=0 of k-medoids: expected at least 1"),
        (partial(select_rdss, alpha=1.1), "alpha=1.1: expected a number from 0 to 1"),
        (partial(select_rdss, gamma=0.0), "gamma=0.0: expected a number above 0"),
        (partial(select_activeft, temperature=0.0), "temperature=0.0: expected a number above 0"),
        (partial(select_activeft, iterations=-1), "iterations=-1 of ActiveFT: expected 0 or more"),
        (partial(select_as3l, clusterings=0), "clusterings=0, epochs=40, groupings=0: expected at least 1, 0 and 1"),
    ],
)
def test_bad_parameters(select: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(UslError, match=message):
        select(real_features("digits", 50), 5)
