"""The selectors that look at a classifier: each against a slow version.

That their stages repeat, keep what is labelled, read no other label and survive a kill is asked in `test_methods.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from real_features import NAMES, real_features
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import Key, permutation
from usl_lightning.selection.badge import BADGE, badge
from usl_lightning.selection.bald import BALD, committee, disagreement
from usl_lightning.selection.cbssal import CBSSAL, inconsistency
from usl_lightning.selection.core_gcn import CoreGCN, adjacency, train_graph
from usl_lightning.selection.coreset import select_coreset
from usl_lightning.selection.dropquery import DropQuery, changes
from usl_lightning.selection.entropy import Entropy, entropy
from usl_lightning.selection.least_confidence import LeastConfidence
from usl_lightning.selection.margin import Margin
from usl_lightning.selection.mma import MMA, shares
from usl_lightning.selection.next_selector import Known, NextSelector
from usl_lightning.selection.tod import TOD
from usl_lightning.selection.uherding import UHerding, kernel_width
from usl_lightning.selection.vaal import VAE, discriminator, told_apart, vae_loss
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


# Those that look at the images again -----------------------------------------------------------------------


def views_of(given: Known, number: int = 4) -> list[Tensor]:
    """Probabilities [n, c] in some views."""
    made = torch.Generator().manual_seed(8)
    return [(3 * torch.randn(given.probabilities.shape, generator=made)).softmax(1) for _ in range(number)]


def test_inconsistency_is_numpys_variance() -> None:
    views = views_of(known("digits"))
    slow = np.var([p.double().numpy() for p in views], axis=0).sum(1)
    assert inconsistency(iter(views)).numpy() == pytest.approx(slow, rel=1e-12)
    assert inconsistency(iter(views[:1])).abs().max() == 0


def test_cbssal_takes_the_most_inconsistent() -> None:
    given, views = known("digits"), views_of(known("digits"))
    model = CBSSAL(image=ImageSpec(1, 8, 8, (), ()), budget=40, init_from="at hand")
    model.scores = model.score(iter(views))
    scores = np.var([p.double().numpy() for p in views], axis=0).sum(1)
    expected = sorted(given.open.tolist(), key=lambda i: -scores[i])[:10]
    assert model.pick(given, 10, 5).tolist() == expected


@pytest.mark.parametrize("clusters", [0, 5, 170, 1000])
def test_mma_takes_the_narrowest_margins_in_proportion_to_clusters(clusters: int) -> None:
    given, views = known("digits"), views_of(known("digits"), 2)
    model = MMA(image=ImageSpec(1, 8, 8, (), ()), budget=60, init_from="at hand", clusters=clusters)
    model.scores = model.score(iter(views))
    mean = np.sort(sum(p.double().numpy() for p in views) / 2, axis=1)
    margin = mean[:, -1] - mean[:, -2]
    chosen = model.pick(given, 30, 5).tolist()
    assert len(set(chosen)) == 30
    if not clusters:
        assert margin[chosen] == pytest.approx(np.sort(margin[given.open])[:30], abs=1e-6)
        return
    found, _ = kmeans(given.features[given.open], min(clusters, 170), seed=5)
    sizes = torch.bincount(found, minlength=min(clusters, 170))
    for cluster, places in enumerate(shares(sizes, 30).tolist()):
        own = given.open[found == cluster].tolist()
        least = sorted(margin[own])[:places]
        assert sorted(margin[[i for i in chosen if i in own]]) == pytest.approx(least, abs=1e-6)


@drawn(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_are_in_proportion(sizes: list[int], part: float) -> None:
    count = int(part * sum(sizes))
    if not sum(sizes):
        return
    places = shares(torch.tensor(sizes), count).tolist()
    assert sum(places) == count
    assert all(0 <= place <= size for place, size in zip(places, sizes, strict=True))
    full = [place == size for place, size in zip(places, sizes, strict=True)]
    exact = [count * size / sum(sizes) for size in sizes]
    assert all(f or abs(place - e) < len(sizes) for f, place, e in zip(full, places, exact, strict=True))


def test_vaals_losses_are_those_of_the_paper() -> None:
    """By torch's own divergence of normal distributions and its cross-entropy."""
    made = torch.Generator().manual_seed(0)
    x, rebuilt = torch.rand(2, 6, 3, 32, 32, generator=made)
    mean, log_variance = torch.randn(2, 6, 5, generator=made)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum()
    expected = ((x - rebuilt) ** 2).mean() + 0.3 * divergence
    assert vae_loss(x, rebuilt, mean, log_variance, beta=0.3).item() == pytest.approx(expected.item(), rel=1e-5)
    own, new = torch.randn(2, 7, 1, generator=made)
    for taken_for in (1.0, 0.0):
        p = own.sigmoid(), new.sigmoid()
        other = p[1] if taken_for else 1 - p[1]
        expected = -p[0].log().mean() - other.log().mean()
        assert told_apart(own, new, taken_for=taken_for).item() == pytest.approx(expected.item(), rel=1e-5)


def test_vaals_networks_have_the_published_shapes() -> None:
    """Their numbers of weights, counted layer by layer."""
    vae = VAE(3, 32, 128)
    rebuilt, mean, log_variance = vae(torch.zeros(2, 3, 32, 32), torch.zeros(2, 32))
    assert (rebuilt.shape, mean.shape, log_variance.shape) == ((2, 3, 32, 32), (2, 32), (2, 32))
    convolutions = 16 * (3 * 128 + 2 * (128 * 256 + 256 * 512) + 512 * 1024 + 1024 * 512)
    norms = 2 * (128 + 256 + 512 + 1024 + 512 + 256 + 128)
    linear = 2 * (4096 * 32 + 32) + 32 * 16384 + 16384
    assert sum(p.numel() for p in vae.parameters()) == convolutions + norms + linear + 128 * 3 + 3
    assert sum(p.numel() for p in discriminator(32).parameters()) == 32 * 512 + 512 + 512 * 512 + 512 + 512 + 1


def test_more_clusters_than_images_are_told_as_used(caplog: pytest.LogCaptureFixture) -> None:
    given = known(NAMES[0], 180)
    model = MMA(image=ImageSpec(1, 8, 8, (), ()), budget=LABELLED + 9, features="at hand", clusters=500)
    model.scores = torch.rand(180)
    with caplog.at_level("INFO"):
        model.pick(given, 9, 5)
    assert "MMA: 150 clusters instead of 500, of as many images" in caplog.text
    assert model.settled(180) == {"clusters": 150}


def test_a_pool_that_is_raised_to_the_picks_is_told_as_used(caplog: pytest.LogCaptureFixture) -> None:
    given = known(NAMES[0], 180)
    model = CoreGCN(image=ImageSpec(1, 8, 8, (), ()), budget=LABELLED + 9, features="at hand", pool=4, steps=2)
    with caplog.at_level("INFO"):
        model.pick(given, 9, 5)
    assert "CoreGCN: a pool of 9 instead of 4, as so many are to be picked" in caplog.text
    assert model.settled(180) == {"pool": 9}
