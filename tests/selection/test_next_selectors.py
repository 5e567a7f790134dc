"""The selectors that look at a classifier: each against a slow version.

That their stages repeat, keep what is labelled, read no other label and survive a kill is asked in `test_methods.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from real_features import NAMES, real_features
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import Key, permutation
from usl_lightning.selection.badge import BADGE, badge
from usl_lightning.selection.bald import BALD, committee, disagreement
from usl_lightning.selection.core_gcn import CoreGCN, adjacency, train_graph
from usl_lightning.selection.coreset import select_coreset
from usl_lightning.selection.dropquery import DropQuery, changes
from usl_lightning.selection.entropy import Entropy, entropy
from usl_lightning.selection.least_confidence import LeastConfidence
from usl_lightning.selection.margin import Margin
from usl_lightning.selection.next_selector import Known, NextSelector
from usl_lightning.selection.tod import TOD
from usl_lightning.selection.uherding import UHerding, kernel_width
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.logistic import LinearHead
from usl_lightning.vectors.votes import Votes

LABELLED = 30


def known(name: str, n: int = 200) -> Known:
    """Real features, a linear classifier of them, and every sixth image kept; three of these have no answer."""
    x = unit_rows(real_features(name, n)).float()
    weights = torch.randn(x.shape[1], 4, generator=torch.Generator().manual_seed(3))
    weights -= (x.mean(0) @ weights) * x.mean(0)[:, None] / x.mean(0).square().sum()
    kept = torch.arange(0, 6 * LABELLED, 6)
    rows = kept[3:]
    return Known(x, lambda f: (20 * f @ weights).softmax(1), kept, rows, torch.arange(len(rows)) % 4)


def picked(method: type[NextSelector], given: Known, count: int = 25, **options: Any) -> list[int]:
    """What a selector picks, in order; never a kept image."""
    model = method(image=ImageSpec(1, 8, 8, (), ()), budget=LABELLED + count, features="at hand", **options)
    with torch.no_grad():
        chosen = model.pick(given, count, 5).tolist()
    assert len(set(chosen)) == count
    assert not set(chosen) & set(given.kept.tolist())
    return chosen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "score"),
    [
        (Entropy, lambda p: -sum(q * math.log(q) for q in p if q > 0)),
        (LeastConfidence, lambda p: -max(p)),
        (Margin, lambda p: sorted(p)[-2] - sorted(p)[-1]),
    ],
)
def test_uncertain_ones_come_first(
    method: type[NextSelector], score: Callable[[list[float]], float], name: str
) -> None:
    given = known(name)
    scores = [score(p) for p in given.probabilities.double().tolist()]
    order = sorted(set(range(200)) - set(given.kept.tolist()), key=lambda i: -scores[i])
    found = [scores[i] for i in picked(method, given)]
    assert found == pytest.approx([scores[i] for i in order[:25]], abs=1e-6)  # in rounding there may be ties


def test_probabilities_of_0_are_no_trouble() -> None:
    sure = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert entropy(sure).tolist() == pytest.approx([0, math.log(2)])
    assert disagreement(torch.stack([sure, sure.flip(1)])).tolist() == pytest.approx([math.log(2), 0])


def test_disagreement_is_the_mutual_information() -> None:
    p = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0)).double().softmax(2)

    def information(q: Tensor) -> float:
        return -sum(value * math.log(value) for value in q.tolist())

    expected = [
        information(p[:, i].mean(0)) - sum(information(p[member, i]) for member in range(5)) / 5 for i in range(7)
    ]
    assert disagreement(p).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_members_of_the_committee_are_scikit_learns_regressions(name: str) -> None:
    """Each with its weights of the labels, which sum to what scales C."""
    given, members, strength = known(name), 4, 30.0
    told = committee(given, members, strength, seed=5)
    x = given.features - given.features.mean(0)
    x = (x / x.square().sum(1).mean().sqrt()).double().numpy()
    drawn = Key.of(5, "BALD", slots=torch.arange(members)).uniform(len(given.rows)).double()
    weights = (-(1 - drawn).log() + 1e-6).numpy()
    for member, own in zip(told, weights / weights.max(1, keepdims=True), strict=True):
        slow = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
        slow.fit(x[given.rows], given.labels.numpy(), sample_weight=own)
        assert np.abs(member.numpy() - slow.predict_proba(x)).max() < 0.02
    scores = disagreement(told).tolist()
    order = sorted(given.open.tolist(), key=lambda i: -scores[i])
    assert picked(BALD, given, members=members, strength=strength) == order[:25]


@pytest.mark.parametrize("name", NAMES)
def test_badge_is_kmeans_plus_plus_on_the_gradients(name: str) -> None:
    """Which are built here."""
    given = known(name)
    h, p = given.features[given.open].double(), given.probabilities[given.open].double()
    a = p - torch.nn.functional.one_hot(p.argmax(1), 4)
    g = (a[:, :, None] * h[:, None]).flatten(1).numpy()
    draws = Key.of(5, "BADGE", slots=torch.arange(25)).uniform()[:, 0].double().numpy()
    chosen = [int((g**2).sum(1).argmax())]
    for draw in draws[1:]:
        nearest = np.min([((g - g[i]) ** 2).sum(1) for i in chosen], axis=0)
        chosen.append(int(np.searchsorted(np.cumsum(nearest), draw * nearest.sum(), side="right")))
    assert picked(BADGE, given) == given.open[chosen].tolist()


def test_badge_of_equal_gradients_takes_the_lowest_left() -> None:
    same = torch.ones(5, 2)
    assert badge(same, torch.full((5, 2), 0.5), 4).tolist() == [0, 1, 2, 3]
    assert badge(same, torch.tensor([1.0, 0.0]).expand(5, 2), 5).tolist() == [0, 1, 2, 3, 4]  # no gradient at all


@pytest.mark.parametrize("name", NAMES)
def test_coreset_starts_from_the_labelled(name: str) -> None:
    x = real_features(name, 300)
    unit = unit_rows(x).double().numpy()
    d = np.sqrt(((unit[:, None] - unit) ** 2).sum(2))
    first = [7, 3, 200]
    chosen = list(first)
    while len(chosen) < 25:
        chosen.append(int(d[:, chosen].min(1).argmax()))
    assert select_coreset(x, 25, first=torch.tensor(first)).tolist() == chosen


@pytest.mark.parametrize("name", NAMES)
def test_dropquery_takes_the_centre_of_each_cluster_of_those_whose_guess_changes(name: str) -> None:
    given = known(name)
    x = given.features
    counts = torch.zeros(200, dtype=torch.int64)
    for number in range(3):
        mask = Key.of(5, "DropQuery", number, slots=torch.arange(200)).uniform(x.shape[1]) >= 0.75
        dropped = [row * m / max(float((row * m).norm()), 1e-12) for row, m in zip(x, mask, strict=True)]
        counts += given.classify(torch.stack(dropped)).argmax(1) != given.probabilities.argmax(1)
    assert torch.equal(changes(given, 3, 0.75, 5), counts)
    unsure = [i for i in given.open.tolist() if counts[i] >= 2]
    assert len(unsure) > 5
    labels, centres = kmeans(x[unsure], 5, seed=5)
    distances = (x[unsure] - centres[labels]).norm(dim=1).tolist()
    expected = [
        unsure[min((j for j in range(len(unsure)) if labels[j] == c), key=distances.__getitem__)] for c in range(5)
    ]
    assert picked(DropQuery, given, 5) == expected
    nothing_changes = picked(DropQuery, given, 5, dropout=0.0)
    assert nothing_changes == picked(LeastConfidence, given, 5)


@pytest.mark.parametrize("uncertain", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_uherding_has_the_highest_gain(name: str, uncertain: bool) -> None:
    given = known(name)
    x = given.features.double().numpy()
    d = ((x[:, None] - x) ** 2).sum(2)
    labelled = d[np.ix_(given.rows, given.rows)]
    assert kernel_width(given.features[given.rows]) == pytest.approx(np.sqrt(labelled[labelled > 0].min()), rel=1e-4)
    kernel = np.exp(-d / 0.6**2)
    p = np.sort(given.probabilities.double().numpy(), axis=1)
    weights = 1 - (p[:, -1] - p[:, -2]) if uncertain else np.ones(200)
    covered = kernel[:, given.kept].max(1)
    for pick in picked(UHerding, given, sigma=0.6, uncertain=uncertain):
        gains = (np.maximum(kernel - covered, 0) * weights).sum(1)
        assert gains[pick] >= gains[given.open].max() - 1e-5
        covered = np.maximum(covered, kernel[pick])


@pytest.mark.parametrize("rule", ["core", "uncertain"])
@pytest.mark.parametrize("name", NAMES)
def test_the_graph_network_equals_a_loop(name: str, rule: str) -> None:
    """Trained by torch's own layers on the matrix that the paper writes."""
    given = known(name)
    both = torch.cat([given.kept, given.open])
    x, labels = given.features[both], torch.arange(200) < len(given.kept)
    cosines = (x @ x.T).clamp(0) * (1 - torch.eye(200))
    a = cosines / cosines.sum(0) + torch.eye(200)
    assert (adjacency(x) - a).abs().max() < 1e-4
    key = Key.of(5, "CoreGCN", slots=torch.arange(max(x.shape[1], 128)))
    ends = (6 / (x.shape[1] + 128)) ** 0.5, (6 / 129) ** 0.5
    one, two = torch.nn.Linear(x.shape[1], 128), torch.nn.Linear(128, 1)
    one.weight.data = key.fold(1)[: x.shape[1]].uniform(128, -ends[0], ends[0]).T
    two.weight.data = key.fold(2)[:128].uniform(1, -ends[1], ends[1]).T
    torch.nn.init.zeros_(one.bias)
    torch.nn.init.zeros_(two.bias)
    optimizer = torch.optim.Adam([*one.parameters(), *two.parameters()], lr=1e-3, weight_decay=5e-4)

    def convolved(layer: torch.nn.Linear, points: Tensor) -> Tensor:
        return (a @ points) @ layer.weight.T + layer.bias

    for step in range(12):
        mask = Key.of(5, "CoreGCN", "dropout", step, slots=torch.arange(200)).uniform(128) >= 0.3
        s = convolved(two, convolved(one, x).relu() * mask / 0.7)[:, 0].sigmoid()
        loss = -s[labels].log().mean() - 1.2 * (1 - s[~labels]).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        hidden = convolved(one, x).relu()
        s = convolved(two, hidden)[:, 0].sigmoid()
    graph = train_graph(x, labels, weight=1.2, steps=12, seed=5)
    assert (graph.labelled - s).abs().max() < 1e-3
    assert (graph.hidden - hidden).abs().max() < 1e-3 * float(hidden.abs().max())
    chosen = picked(CoreGCN, given, 8, rule=rule, steps=12)
    place = {int(image): number for number, image in enumerate(both)}
    if rule == "uncertain":
        gaps = (graph.labelled - 0.1).abs().tolist()
        assert [place[i] for i in chosen] == sorted(range(len(given.kept), 200), key=gaps.__getitem__)[:8]
        return
    d, reached = torch.cdist(graph.hidden, graph.hidden), list(range(len(given.kept)))
    for image in chosen:
        nearest = d[:, reached].min(1).values
        assert nearest[place[image]] >= nearest.max() * (1 - 1e-3)
        reached.append(place[image])


def test_a_pool_smaller_than_the_set_is_chosen_from_alone() -> None:
    few, all_of_them = (picked(CoreGCN, known("digits"), 25, steps=3, pool=pool) for pool in (1, 10_000))
    assert sorted(few) == sorted(known("digits").open[permutation(170, 5, "CoreGCN")[:25]].tolist())
    assert set(few) != set(all_of_them)


@pytest.mark.parametrize("name", NAMES)
def test_tod_takes_what_has_moved_most(name: str) -> None:
    given = known(name)
    p = given.probabilities.double().numpy()
    alike = ((p - 0.25) ** 2).sum(1) / 2
    expected = sorted(given.open.tolist(), key=lambda i: alike[i])[:10]
    assert alike[picked(TOD, given, 10)] == pytest.approx(alike[expected], abs=1e-6)
    head = LinearHead(given.features.shape[1], 4)
    head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1)) * 20)
    model = TOD(image=ImageSpec(1, 8, 8, (), ()), budget=40, features="at hand")
    model._earlier = Votes([head])
    moved = ((p - model._earlier(given.features).softmax(1).double().numpy()) ** 2).sum(1) / 2
    expected = sorted(given.open.tolist(), key=lambda i: -moved[i])[:10]
    assert moved[model.pick(given, 10, 0).tolist()] == pytest.approx(moved[expected], abs=1e-6)


def test_the_width_where_no_two_labels_differ_is_maxherdings() -> None:
    assert kernel_width(torch.ones(3, 2)) == 1.0
    assert kernel_width(torch.ones(1, 2)) == 1.0
