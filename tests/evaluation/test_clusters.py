import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.evaluation.clusters import (
    adjusted_mutual_information,
    class_entropies,
    cluster_metrics,
    many_to_one_accuracy,
)


def test_perfect_and_useless_clusters() -> None:
    labels = torch.arange(60) % 3
    perfect = cluster_metrics((labels + 1) % 3, labels, num_clusters=5)
    assert perfect == {"nmi": 1.0, "ari": 1.0, "many_to_one": 1.0, "clusters": 3, "largest": 20, "smallest": 0}
    one = cluster_metrics(torch.zeros_like(labels), labels)
    assert one == {
        "nmi": 0.0, "ari": 0.0, "many_to_one": pytest.approx(1 / 3), "clusters": 1, "largest": 60, "smallest": 60,
    }  # fmt: skip


def test_nmi_closed_form() -> None:
    # Each class of two halved: I = log 2, H(clusters) = log 4: NMI with the arithmetic mean is 2/3.
    clusters = torch.arange(40) % 4
    metrics = cluster_metrics(clusters, clusters // 2)
    assert metrics["nmi"] == pytest.approx(2 / 3)
    assert metrics["many_to_one"] == 1.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 4)), min_size=1, max_size=40))
def test_many_to_one_equals_a_loop(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    known = [(c, y) for c, y in pairs if y >= 0]
    found = many_to_one_accuracy(clusters, labels)
    if not known:
        assert math.isnan(found)
        return
    right = 0
    for cluster in {c for c, _ in known}:
        classes = [y for c, y in known if c == cluster]
        right += max(classes.count(y) for y in set(classes))
    assert found == pytest.approx(right / len(known))


def test_unknown_labels_count_for_the_sizes_alone() -> None:
    clusters = torch.tensor([0, 0, 1, 1, 2])
    labels = torch.tensor([0, 0, 1, 1, -1])
    metrics = cluster_metrics(clusters, labels)
    assert (metrics["ari"], metrics["clusters"]) == (1.0, 3)
    assert math.isnan(cluster_metrics(clusters, torch.full_like(labels, -1))["nmi"])


def test_adjusted_information_is_without_what_chance_gives() -> None:
    """Of many random clusters the information is large, and none of it is of the classes."""
    draw = torch.Generator().manual_seed(0)
    clusters, labels = (torch.randint(n, (300,), generator=draw) for n in (60, 5))
    assert cluster_metrics(clusters, labels)["nmi"] > 0.15
    assert adjusted_mutual_information(clusters, labels) == pytest.approx(0, abs=0.03)
    assert adjusted_mutual_information((labels + 1) % 5, torch.where(clusters > 5, labels, -1)) == pytest.approx(1)
    assert math.isnan(adjusted_mutual_information(clusters, torch.full_like(labels, -1)))


def test_entropies_of_the_classes_in_closed_form() -> None:
    clusters = torch.tensor([0, 0, 0, 0, 2, 2, 2, 3])
    labels = torch.tensor([0, 0, 1, 1, 4, 4, -1, -1])
    found = class_entropies(clusters, labels)
    assert found[[0, 2]].tolist() == pytest.approx([math.log(2), 0])
    assert found[[1, 3]].isnan().all(), "one is empty, of one nothing is known"


@pytest.mark.parametrize(("clusters", "labels"), [(torch.zeros(0), torch.zeros(0)), (torch.zeros(3), torch.zeros(2))])
def test_bad_input(clusters: Tensor, labels: Tensor) -> None:
    with pytest.raises(UslError, match="expected one of each for every point"):
        cluster_metrics(clusters.long(), labels.long())
