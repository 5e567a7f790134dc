"""The report of `usl test` on features: each figure as its own function gives it, and what is left out."""

import json

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from usl_lightning.evaluation.features import PENALTY, Features, evaluate_features, first_filters
from usl_lightning.evaluation.knn import knn_accuracy, neighbour_purity
from usl_lightning.evaluation.linear_probe import balanced_subset, probe_accuracy
from usl_lightning.evaluation.spread import rankme


def split() -> tuple[Features, Features]:
    """Pixels of digits as features."""
    x, y = (torch.from_numpy(column) for column in load_digits(return_X_y=True))
    return Features(x[:1437].float(), y[:1437]), Features(x[1437:].float(), y[1437:])


def test_figures_are_those_of_their_functions() -> None:
    train, test = split()
    report = evaluate_features(train, test, knn_k=20, seed=3)
    metrics = report.metrics
    assert metrics["knn_accuracy"] == knn_accuracy(*train, *test, k=20, num_classes=10) == metrics["knn_20_accuracy"]
    assert metrics["knn_1_accuracy"] == knn_accuracy(*train, *test, k=1, num_classes=10)
    assert metrics["rankme"] == pytest.approx(float(rankme(train.features)), rel=1e-3)
    assert metrics["probe_accuracy"] == probe_accuracy(*train, *test, num_classes=10, penalty=PENALTY)
    by_sgd = probe_accuracy(*train, *test, num_classes=10, sgd_seed=3)
    assert metrics["probe_sgd_accuracy"] == by_sgd == pytest.approx(metrics["probe_accuracy"], abs=0.02)
    few = balanced_subset(train.labels, 1000, seed=3)
    expected = probe_accuracy(train.features[few], train.labels[few], *test, num_classes=10, penalty=PENALTY)
    assert metrics["probe_1000_accuracy"] == expected
    assert metrics["neighbour_purity"] == neighbour_purity(*train, torch.arange(len(train.labels)), k=10)
    assert 0.6 < metrics["nmi"] < 0.9
    assert 0.5 < metrics["ari"] < metrics["nmi"]
    assert report.left_out == []
    assert "k = 20 of 1437" in report.notes["knn_accuracy"]
    assert json.loads(json.dumps(report.as_dict()))["metrics"] == metrics


def test_of_many_features_the_principal_components_count_too() -> None:
    """As scikit-learn has them; those of the training images alone."""
    draw = torch.Generator().manual_seed(0)
    wider = torch.randn(64, 200, generator=draw) / 8
    train, test = (Features((each.features @ wider).relu() + 3, each.labels) for each in split())
    metrics = evaluate_features(train, test, knn_k=20).metrics
    pca = PCA(128, svd_solver="full").fit(train.features.numpy())
    parts = [(torch.from_numpy(pca.transform(each.features.numpy())), each.labels) for each in (train, test)]
    expected = knn_accuracy(*parts[0], *parts[1], k=20, num_classes=10)
    assert metrics["knn_pca_accuracy"] == pytest.approx(expected, abs=0.003)  # of 360 images, one may be a tie
    assert metrics["knn_pca_accuracy"] != metrics["knn_accuracy"]
    assert "knn_pca_accuracy" not in evaluate_features(*split()).metrics, "64 pixels have fewer"


def test_of_many_classes_the_five_likeliest_count_too() -> None:
    train, test = split()
    draw = torch.Generator().manual_seed(0)
    part = [torch.randint(2, each.labels.shape, generator=draw) for each in (train, test)]  # no feature tells it
    train, test = (
        Features(each.features, 2 * each.labels + half) for each, half in zip((train, test), part, strict=True)
    )
    metrics = evaluate_features(train, test, knn_k=20).metrics
    assert metrics["probe_accuracy"] < 0.6 < 0.95 < metrics["probe_top5_accuracy"]


def test_figures_are_a_function_of_the_seed() -> None:
    train, test = split()
    train = Features(train.features[:1100], train.labels[:1100])
    first, again, other = (evaluate_features(train, test, knn_k=20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_table_is_aligned_and_tells_k() -> None:
    lines = evaluate_features(*split(), knn_k=20).table().splitlines()
    assert len({line.index(".") for line in lines}) == 1, "decimal points stand below each other"
    assert any(line.startswith("knn_accuracy") and "k = 20" in line for line in lines)


def test_of_few_images_the_note_tells_how_many_are_similar() -> None:
    train = Features(*(part[:6] for part in split()[0]))
    assert evaluate_features(train).notes["neighbour_purity"].startswith("of the 5 most similar images")


def test_filters_of_the_first_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 3))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[0, 1, 2, 0], net[0].weight[0, 2, 0, 0], net[0].weight[1, 0, 0, 1] = -0.5, 0.25, 8.0
    filters = first_filters(net)
    assert filters is not None
    assert filters.shape == (2, 3, 3, 3)
    assert [int(filters[0, 1, 2, 0]), int(filters[0, 2, 0, 0]), int(filters[1, 0, 0, 1])] == [0, 191, 255]
    assert int(filters[1, 2, 2, 2]) == 128, "0 is grey"
    assert first_filters(nn.Sequential(nn.Conv2d(5, 2, 3))) is None
    assert first_filters(nn.Sequential(nn.Conv2d(3, 2, 1))) is None
    assert first_filters(nn.Linear(2, 2)) is None


CLASSIFIERS = ("knn_accuracy", "knn_1_accuracy", "knn_20_accuracy", "probe_accuracy", "probe_sgd_accuracy")


@pytest.mark.parametrize(
    ("case", "missing", "said"),
    [
        ("no test split", {*CLASSIFIERS, "probe_1000_accuracy"}, "has no test images"),
        ("test labels", {*CLASSIFIERS, "probe_1000_accuracy"}, "no test image has a label"),
        (
            "labels",
            {"nmi", "ari", "neighbour_purity", *CLASSIFIERS, "probe_1000_accuracy"},
            "no training image has a label",
        ),
        ("few labels", {"probe_1000_accuracy"}, "there are 900, all in use above"),
    ],
)
def test_what_cannot_be_measured_is_said(case: str, missing: set[str], said: str) -> None:
    train, test = split()
    everything = evaluate_features(train, test).metrics.keys()
    if case == "no test split":
        report = evaluate_features(train)
    elif case == "test labels":
        report = evaluate_features(train, Features(test.features, torch.full_like(test.labels, -1)))
    elif case == "labels":
        report = evaluate_features(Features(train.features, torch.full_like(train.labels, -1)), test)
    else:
        labels = torch.where(torch.arange(1437) < 900, train.labels, -1)
        report = evaluate_features(Features(train.features, labels), test)
        assert "k = 200 of 900" in report.notes["knn_accuracy"]
    assert everything - report.metrics.keys() == missing
    assert len(report.left_out) == 1
    assert said in report.left_out[0]
    assert f"left out: {report.left_out[0]}" in report.table()
