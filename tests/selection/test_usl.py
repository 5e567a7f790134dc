"""USL against a hand-computed case and against loops that follow the published description line by line."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_features import NAMES, real_features
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.selection.kmeans_nearest import select_kmeans_nearest
from usl_lightning.selection.maxherding import select_maxherding
from usl_lightning.selection.probcover import select_probcover
from usl_lightning.selection.rdss import select_rdss
from usl_lightning.selection.typiclust import select_typiclust
from usl_lightning.selection.usl import (
    PRESETS,
    Preset,
    Utility,
    _among_nearest,
    regularized_selection,
    select_usl,
)
from usl_lightning.vectors import density
from usl_lightning.vectors.density import density_distance
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.memory import remembering
from usl_lightning.vectors.neighbors import Neighbors

PLAIN = {"weight": 1.0, "alpha": 1.0, "momentum": 0.0, "iterations": 2}


def parameters(preset: Preset) -> dict:
    return {name: value for name, value in asdict(preset).items() if name not in ("k", "kmeans_iterations")}


def slow_selection(
    x: Tensor,
    mean_distance: Tensor,
    labels: Tensor,
    *,
    weight: float,
    alpha: float,
    momentum: float,
    iterations: int,
    budget: int,
    horizon: float | None = None,
    nearest: int | None = None,
    exclude_same_cluster: bool = True,
) -> list[int]:
    a, cluster = x.double().numpy(), labels.tolist()
    utility = [1 / max(float(m), 1e-12) for m in mean_distance]
    penalty = [0.0] * len(a)
    occurring = sorted(set(cluster))
    selected: list[int] = []
    for pick in range(iterations):
        if pick > 0:
            for i in range(len(a)):
                squared = np.float32(((a[selected] - a[i]) ** 2).sum(1))
                order = sorted(range(len(selected)), key=lambda j, s=squared: (s[j], j))
                total = 0.0
                for j in order if nearest is None else order[:nearest]:
                    d = float(squared[j])
                    ignored = cluster[selected[j]] == cluster[i] if exclude_same_cluster else d == 0
                    if not ignored and (horizon is None or d < horizon):
                        total += (1 / max(d, 1e-12)) ** alpha
                penalty[i] = momentum * penalty[i] + (1 - momentum) * total
        selected = []
        for c in occurring:
            members = [i for i in range(len(a)) if cluster[i] == c]
            selected.append(max(members, key=lambda i: (utility[i] - weight * penalty[i], -i)))
    remaining = sorted(set(range(len(a))) - set(selected), key=lambda i: (-utility[i], i))
    return (selected + remaining)[:budget]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_slow_version_on_real_features(name: str, preset: str) -> None:
    x = real_features(name, 400)
    values = replace(PRESETS[preset], nearest=PRESETS[preset].nearest and 7)
    mean_distance = density_distance(x, 20)
    labels, _ = kmeans(x, 15)
    chosen = regularized_selection(x, mean_distance, labels, budget=15, **parameters(values))
    assert chosen.tolist() == slow_selection(x, mean_distance, labels, budget=15, **parameters(values))


@pytest.mark.parametrize("preset", PRESETS)
def test_select_usl_is_its_parts(preset: str) -> None:
    x = real_features("digits", 500)
    values = PRESETS[preset]
    chosen = select_usl(3 * x, 12, preset=preset, seed=4)
    mean_distance = density_distance(x, min(values.k, 50))
    labels, _ = kmeans(x, 12, seed=4, iterations=values.kmeans_iterations)
    assert chosen.tolist() == slow_selection(x, mean_distance, labels, budget=12, **parameters(values))


@pytest.mark.parametrize("utility", ["inverse", "cosine"])
def test_utility_is_of_the_neighbours(utility: Utility) -> None:
    """Without the regulariser: the member of each cluster that is nearest to its neighbours, or likest (§6.6)."""
    x = real_features("digits", 300)
    k, (labels, _) = 30, kmeans(x, 12, seed=4, iterations=200)
    near = torch.cdist(x.double(), x.double()).square().sort(1).values[:, :k]
    u = (near.mean(1) ** -1) if utility == "inverse" else (1 - near / 2).mean(1)
    chosen = select_usl(x, 12, seed=4, k=k, weight=0.0, utility=utility)
    assert chosen.tolist() == [int(torch.where(labels == c, u, -1.0).argmax()) for c in range(12)]
    mixed = select_usl(x, 12, seed=4, weight=0.1, utility=utility, squared=False)
    assert (utility == "cosine") == torch.equal(mixed, select_usl(x, 12, seed=4, weight=0.1, utility=utility))


def test_cosine_utility_is_regularised_like_the_other() -> None:
    x = real_features("digits", 300)
    mean_distance, (labels, _) = density_distance(x, 30), kmeans(x, 12, seed=4)
    cosine = regularized_selection(x, mean_distance, labels, **parameters(PRESETS["cifar10"]), utility="cosine")
    u = 1 - mean_distance / 2
    shifted = u - u.min() + 1e-3  # only differences of utilities decide
    assert torch.equal(cosine, regularized_selection(x, 1 / shifted, labels, **parameters(PRESETS["cifar10"])))
    with pytest.raises(UslError, match="utility 'cos': expected inverse or cosine"):
        select_usl(x, 12, utility="cos")  # type: ignore[arg-type]


def test_the_preset_for_small_scale_sets_goes_by_the_budget() -> None:
    """Table 14: α = λ = 0.5 up to 100 labels, 1 beyond."""
    x = real_features("digits", 800)
    for budget, name in ((100, "cifar10"), (101, "cifar100")):
        assert torch.equal(select_usl(x, budget, preset="cifar"), select_usl(x, budget, preset=name))
    assert not torch.equal(select_usl(x, 101, preset="cifar"), select_usl(x, 101, preset="cifar10"))


def test_hand_computed() -> None:
    # Cluster 0 at x = 0, 1, 2; cluster 1 at x = 4, 6. U = (1, 0.9, 1.1) and (2, 1.9).
    # First picks: 2 (x=2) and 3 (x=4). Reg = 1/d² to the other cluster's pick:
    # cluster 0: 1/16, 1/9, 1/4 -> scores 0.9375, 0.7889, 0.85; cluster 1: 1/4, 1/16 -> 1.75, 1.8375.
    x = torch.tensor([[0.0], [1.0], [2.0], [4.0], [6.0]])
    mean_distance = 1 / torch.tensor([1.0, 0.9, 1.1, 2.0, 1.9], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1])

    def chosen(**changes: object) -> list[int]:
        return regularized_selection(x, mean_distance, labels, **{**PLAIN, **changes}).tolist()

    assert chosen(iterations=1) == [2, 3]
    assert chosen() == [0, 4]
    assert chosen(weight=0.0) == [2, 3]
    assert chosen(momentum=0.5) == [2, 3]  # halves: 0.96875, 0.8444, 0.975; 1.875, 1.86875
    # Second update, momentum 0.5: the same picks again, Reg three quarters: 0.953, 0.817, 0.9125; 1.8125, 1.853.
    assert chosen(momentum=0.5, iterations=3) == [0, 4]
    assert chosen(horizon=4.0) == [2, 3]  # d² = 4 is not below 4
    assert chosen(horizon=4.1) == [0, 4]
    # alpha = 0.5: 1/4, 1/3, 1/2 -> 0.75, 0.567, 0.6; 1/2, 1/4 -> 1.5, 1.65.
    assert chosen(alpha=0.5) == [0, 4]
    # The own pick counts (not for itself): cluster 0: 1/16 + 1/4, 1/9 + 1, 1/4; cluster 1: 1/4, 1/16 + 1/4.
    assert chosen(exclude_same_cluster=False) == [2, 3]
    # Only the nearest pick of any cluster: 1/4, 1, 0; 0, 1/4 -> 0.75, -0.1, 1.1; 2, 1.65.
    assert chosen(exclude_same_cluster=False, nearest=1) == [2, 3]
    # Nearest first, then the own cluster masked: nothing is left.
    assert chosen(nearest=1) == [2, 3]
    assert chosen(budget=1) == [0]
    assert chosen(budget=4) == [0, 4, 3, 2]
    assert chosen(budget=5) == [0, 4, 3, 2, 1]


@pytest.mark.parametrize("preset", PRESETS)
def test_order_of_the_points_does_not_matter(preset: str) -> None:
    x = real_features("patches", 600)
    mean_distance = density_distance(x, 20)
    labels, _ = kmeans(x, 30)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    straight = regularized_selection(x, mean_distance, labels, **parameters(PRESETS[preset]))
    shuffled = regularized_selection(x[order], mean_distance[order], labels[order], **parameters(PRESETS[preset]))
    assert torch.equal(order[shuffled], straight)


def test_far_away_points_outside_the_horizon_do_not_matter() -> None:
    x = real_features("cells", 400)
    mean_distance = density_distance(x, 20)
    labels, _ = kmeans(x, 10)
    values = parameters(PRESETS["cifar100"])
    before = regularized_selection(x, mean_distance, labels, **values)
    far = torch.full((5, x.shape[1]), 100.0) * torch.arange(1, 6)[:, None]
    after = regularized_selection(
        torch.cat([x, far]),
        torch.cat([mean_distance, torch.full((5,), 0.1, dtype=torch.float64)]),
        torch.cat([labels, torch.arange(10, 15)]),
        **values,
    )
    assert torch.equal(after[:10], before)
    assert after[10:].tolist() == [400, 401, 402, 403, 404]


def test_numbers_of_clusters_need_not_be_consecutive() -> None:
    x = real_features("digits", 200)
    mean_distance = density_distance(x, 10)
    labels, _ = kmeans(x, 6)
    values = parameters(PRESETS["cifar10"])
    plain = regularized_selection(x, mean_distance, labels, **values)
    spread = regularized_selection(x, mean_distance, labels * 1000 + 7, **values)
    assert torch.equal(plain, spread)


def test_duplicates_across_clusters_stay_finite_and_ties_go_to_the_lower_index() -> None:
    x = torch.ones(8, 3)
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    for preset in PRESETS.values():
        chosen = regularized_selection(x, torch.zeros(8), labels, budget=5, **parameters(preset))
        assert chosen.tolist() == [0, 1, 2, 3, 4]


def test_utility_of_a_duplicate_is_finite_too() -> None:
    # Point 0 equals cluster 1's pick: 1/1e-12 - 2/1e-12 < 1/0.5, so cluster 0 turns to point 1.
    x = torch.tensor([[0.0], [1.0], [0.0]])
    mean_distance, labels = torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0, 0, 1])
    assert regularized_selection(x, mean_distance, labels, **{**PLAIN, "weight": 2.0}).tolist() == [1, 2]


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_nearest_takes_ties_from_the_lower_cluster(rows: list[list[int]], nearest: int) -> None:
    taken = _among_nearest(torch.tensor(rows).float(), nearest)
    for row, found in zip(rows, taken.tolist(), strict=True):
        best = sorted(range(6), key=lambda j, r=row: (r[j], j))[:nearest]
        assert [j for j in range(6) if found[j]] == sorted(best)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 24),
    budget=st.integers(1, 24),
    preset=st.sampled_from(list(PRESETS)),
    kind=st.sampled_from(["random", "duplicates", "equal"]),
    options=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 9),
)
def test_always_exactly_the_budget(
    n: int, budget: int, preset: str, kind: str, options: tuple[bool, bool], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    x = {"random": x, "duplicates": x[torch.randint(max(1, n // 3), (n,), generator=generator)], "equal": x[:1]}[kind]
    x = x.expand(n, 3)
    squared, include_self = options
    budget = min(budget, n)
    chosen = select_usl(x, budget, preset=preset, seed=seed, squared=squared, include_self=include_self)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == len(chosen) == budget
    assert min(chosen) >= 0
    assert max(chosen) < n


def test_every_budget_of_a_real_set() -> None:
    x = real_features("cells", 60)
    for budget in range(1, 61):
        chosen = select_usl(x, budget).tolist()
        assert len(set(chosen)) == len(chosen) == budget


def test_density_of_paper_and_code() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert density_distance(x, 2).tolist() == [0.5, 0.5, 2.0]
    assert density_distance(x, 2, squared=False).tolist() == [0.5, 0.5, 1.0]
    assert density_distance(x, 2, include_self=False).tolist() == [5.0, 2.5, 6.5]
    assert density_distance(x, 2, squared=False, include_self=False).tolist() == [2.0, 1.5, 2.5]


def test_seed_and_parameters_reach_the_choice() -> None:
    x = real_features("digits", 800)
    base = select_usl(x, 20)
    assert torch.equal(base, select_usl(x, 20, preset="cifar10", seed=0))
    assert torch.equal(base, select_usl(x, 20, horizon=math.inf))
    changed = {
        "seed": 1, "k": 5, "weight": 0.1, "alpha": 3.0, "momentum": 0.0, "iterations": 1, "horizon": 0.3,
        "nearest": 2, "kmeans_iterations": 1, "squared": False,
    }  # fmt: skip
    for name, value in changed.items():
        assert not torch.equal(select_usl(x, 20, **{"weight": 2.0, name: value}), select_usl(x, 20, weight=2.0)), name


def test_small_sets_take_fewer_neighbours_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        select_usl(real_features("digits", 200), 5)
        select_usl(real_features("digits", 12), 2)
    assert "density: k = 20 instead of 400, at most a tenth of the 200 points\n" in caplog.text
    assert "density: k = 2 instead of 400, at most a tenth of the 12 points and 2 at least" in caplog.text


def test_more_clusters_than_labels(caplog: pytest.LogCaptureFixture) -> None:
    """As in the published ImageNet run: exactly the budget, the first clusters' picks while there are enough."""
    x = real_features("digits", 300)
    more = select_usl(x, 42, clusters=42)
    assert select_usl(x, 40, clusters=42).tolist() == more[:40].tolist()
    assert not torch.equal(select_usl(x, 40), more[:40])
    with caplog.at_level("INFO"):
        few = select_usl(torch.cat([x[:5]] * 8), 20, clusters=21)
    assert "the other 15 are the best remaining" in caplog.text
    assert len(few.unique()) == 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    chosen = select_usl(real_features("digits", 300).to(dtype), 10)
    assert len(set(chosen.tolist())) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget 0: expected a number of images from 1 to 30"),
        ({"budget": 31}, "budget 31: expected"),
        ({"preset": "cifar11"}, r"preset 'cifar11' \(did you mean 'cifar10'\?\): expected one of cifar10, cifar100"),
        ({"k": 0}, "k=0 neighbours: expected at least 1"),
        ({"alpha": 21.0}, "USL.alpha: 21 is out of range; expected 0 to 20"),
        ({"weight": float("nan")}, "USL.weight: nan is out of range"),
        ({"momentum": 1.5}, "USL.momentum: 1.5 is out of range; expected 0 to 1"),
        ({"iterations": 0}, "USL.iterations: 0 is out of range; expected 1 or more"),
        ({"nearest": 0}, "USL.nearest: 0 is out of range"),
        ({"horizon": float("nan")}, "USL.horizon: nan is out of range; expected 0 or more"),
        ({"horizon": -1.0}, "USL.horizon: -1 is out of range"),
        ({"clusters": 2}, "clusters=2 for a budget of 3: expected 3 to 3"),
        ({"clusters": 31}, "clusters=31 for a budget of 3: expected"),
    ],
)
def test_bad_parameters(changes: dict, message: str) -> None:
    with pytest.raises(UslError, match=message):
        select_usl(real_features("digits", 30), **{"budget": 3, **changes})


def test_bad_features() -> None:
    x = real_features("digits", 30).clone()
    x[[4, 9]] = 0
    with pytest.raises(UslError, match="all zeros in rows 4, 9; such an image has no direction"):
        select_usl(x, 3)
    x[2, 1] = torch.inf
    with pytest.raises(UslError, match="NaN or infinite values in row 2; extract"):
        select_usl(x, 3)


def test_bad_arguments_of_the_pure_function() -> None:
    x, ones, labels = torch.ones(4, 2), torch.ones(4), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UslError, match="expected one number for each of the 4 rows"):
        regularized_selection(x, ones[:3], labels, **PLAIN)
    with pytest.raises(UslError, match="mean_distance: expected finite numbers"):
        regularized_selection(x, -ones, labels, **PLAIN)
    with pytest.raises(UslError, match="cluster_labels: expected integers, none below 0"):
        regularized_selection(x, ones, labels - 1, **PLAIN)
    with pytest.raises(UslError, match="budget 5: expected a number of images from 1 to 4"):
        regularized_selection(x, ones, labels, budget=5, **PLAIN)


def test_a_remembered_density_is_of_the_same_question(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    search = density.nearest_neighbors

    def counted(features: torch.Tensor, k: int, **options: bool) -> Neighbors:
        searches.append(k)
        return search(features, k, **options)

    monkeypatch.setattr(density, "nearest_neighbors", counted)
    x, y = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    questions = [(x, 5, True), (y, 5, True), (x, 4, True), (x, 5, False)]
    alone = [density.density_distance(points, k, squared=squared) for points, k, squared in questions]
    assert len(searches) == 4
    with remembering():
        for _ in range(2):
            for (points, k, squared), expected in zip(questions, alone, strict=True):
                assert torch.equal(density.density_distance(points.clone(), k, squared=squared), expected)
        assert len(searches) == 8, "each asked for once more"
    density.density_distance(x, 5)
    assert len(searches) == 9, "forgotten"


def test_remembered_answers_are_not_spoilt() -> None:
    x = real_features("digits", 200)
    calls = {
        "kmeans_nearest": lambda budget: select_kmeans_nearest(x, budget),
        "maxherding": lambda budget: select_maxherding(x, budget),
        "rdss": lambda budget: select_rdss(x, budget),
        "typiclust": lambda budget: select_typiclust(x, budget),
        "usl": lambda budget: select_usl(x, budget),
        "probcover": lambda budget: select_probcover(x, budget),
    }
    budgets = (5, 12, 5)
    alone = {name: [call(budget).tolist() for budget in budgets] for name, call in calls.items()}
    with remembering():
        for name, call in calls.items():
            assert [call(budget).tolist() for budget in budgets] == alone[name], name
