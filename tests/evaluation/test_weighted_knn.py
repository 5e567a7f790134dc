import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.evaluation import knn as module
from usl_lightning.evaluation.knn import knn_accuracy, neighbour_purity, weighted_knn


def digits() -> tuple[Tensor, Tensor]:
    rows, labels = load_digits(return_X_y=True)
    return torch.from_numpy(rows), torch.from_numpy(labels)


def votes_by_loop(bank: Tensor, labels: Tensor, query: Tensor, k: int, temperature: float, classes: int) -> list[float]:
    cosines = [float(row @ query / row.norm() / query.norm()) for row in bank]
    order = sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]
    votes = [0.0] * classes
    for i in order:
        votes[labels[i]] += math.exp(cosines[i] / temperature)
    return votes


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    k=st.integers(1, 25),
    temperature=st.sampled_from([0.07, 0.1, 1.0]),
    seed=st.integers(0, 99),
    chunk=st.sampled_from([1, 64, 2**24]),
)
def test_equals_a_loop(n: int, k: int, temperature: float, seed: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank, queries = (torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in (n, 7))
    labels = torch.randint(4, (n,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ENTRIES", chunk)
        found = weighted_knn(bank, labels, queries, k=k, temperature=temperature, num_classes=4)
    for query, prediction in zip(queries, found, strict=True):
        votes = votes_by_loop(bank, labels, query, k, temperature, 4)
        assert votes[prediction] >= max(votes) * (1 - 1e-4)


@pytest.mark.parametrize("k", [1, 20])
def test_equals_scikit_learn_on_digits(k: int) -> None:
    x, y = digits()
    x = x / x.norm(dim=1, keepdim=True)
    reference = KNeighborsClassifier(
        k, weights=lambda distances: torch.from_numpy(1 - distances).div(0.1).exp().numpy(), metric="cosine",
        algorithm="brute",
    ).fit(x[:1000].numpy(), y[:1000].numpy())  # fmt: skip
    found = weighted_knn(x[:1000], y[:1000], 5 * x[1000:], k=k, num_classes=10)
    assert (found.numpy() == reference.predict(x[1000:].numpy())).mean() > 0.998
    accuracy = knn_accuracy(x[:1000], y[:1000], x[1000:], y[1000:], k=k, num_classes=10)
    assert accuracy == pytest.approx(reference.score(x[1000:].numpy(), y[1000:].numpy()), abs=0.002)


def test_weight_is_exp_of_similarity_over_temperature() -> None:
    # One neighbour of class 1 at cosine 1 against two of class 0 at cosine 0: e^(1/T) against 2.
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    labels = torch.tensor([1, 0, 0])
    query = torch.tensor([[1.0, 0.0]])
    turning_point = 1 / math.log(2)
    for temperature, expected in ((0.99 * turning_point, 1), (1.01 * turning_point, 0), (0.001, 1)):
        found = weighted_knn(bank, labels, query, k=3, temperature=temperature, num_classes=2)
        assert found.tolist() == [expected]


def test_unknown_labels_do_not_vote_or_count() -> None:
    x, y = digits()
    hidden = y.clone()
    hidden[::2] = -1
    known = hidden >= 0
    found = weighted_knn(x, hidden, x[:200], k=5, num_classes=10)
    assert torch.equal(found, weighted_knn(x[known], y[known], x[:200], k=5, num_classes=10))
    accuracy = knn_accuracy(x, y, x, hidden, k=1, num_classes=10)
    assert accuracy == 1.0
    assert math.isnan(knn_accuracy(x, y, x, torch.full_like(y, -1), num_classes=10))


def test_half_precision_and_no_queries() -> None:
    x, y = digits()
    found = weighted_knn(x.half(), y, x[:50].half(), k=1, num_classes=10)
    assert torch.equal(found, y[:50])
    assert weighted_knn(x, y, x[:0], num_classes=10).shape == (0,)


def test_bad_input() -> None:
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(UslError, match="expected some, from 0 to 1"):
        weighted_knn(x, y, x, num_classes=2)
    with pytest.raises(UslError, match="expected some"):
        weighted_knn(x, y - 5, x, num_classes=3)
    with pytest.raises(UslError, match="temperature=0"):
        weighted_knn(x, y, x, temperature=0, num_classes=3)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 20), k=st.integers(1, 25), seed=st.integers(0, 99), chunk=st.sampled_from([1, 64, 2**24]),
)  # fmt: skip
def test_purity_equals_a_loop(n: int, k: int, seed: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 3, (n,), generator=generator)
    some = torch.randperm(n, generator=generator)[: n // 2 + 1]
    known = [i for i in range(n) if labels[i] >= 0]
    shares = []
    for i in some.tolist():
        others = [j for j in known if j != i]
        if labels[i] < 0 or not others:
            continue
        cosines = {j: float(features[i] @ features[j] / features[i].norm() / features[j].norm()) for j in others}
        nearest = sorted(others, key=lambda j: -cosines[j])[:k]
        shares.append(sum(bool(labels[j] == labels[i]) for j in nearest) / len(nearest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ENTRIES", chunk)
        found = neighbour_purity(features, labels, some, k=k)
    assert found == pytest.approx(sum(shares) / len(shares)) if shares else math.isnan(found)
