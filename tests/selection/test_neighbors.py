import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_features import NAMES, real_features
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.vectors import near_lists, neighbors
from usl_lightning.vectors.distances import exact_arithmetic, squared_distances, unit_rows
from usl_lightning.vectors.near_lists import NearLists
from usl_lightning.vectors.neighbors import approximate_knn, knn, nearest_neighbors


def slow_knn(x: Tensor, k: int, include_self: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One row at a time: itself, then the others by (float32 of the float64 distance, index)."""
    a = x.double().numpy()
    distances, indices = [], []
    for i in range(len(a)):
        d = ((a - a[i]) ** 2).sum(1).astype(np.float32)
        order = sorted((j for j in range(len(a)) if j != i), key=lambda j, d=d: (d[j], j))
        order = ([i, *order] if include_self else order)[:k]
        distances.append(d[order])
        indices.append(order)
    return np.array(distances), np.array(indices)


@pytest.fixture(params=["all pairs", "faiss", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way of searching."""
    if request.param != "all pairs":
        monkeypatch.setattr(neighbors, "SMALL", 0)
    if request.param == "torch":
        monkeypatch.setattr(neighbors, "_has_faiss", lambda: False)
    return request.param


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_slow_search_on_real_features(name: str, include_self: bool, path: str) -> None:
    x = real_features(name, 500)
    distances, indices = knn(x, 40, include_self=include_self)
    slow_distances, slow_indices = slow_knn(x, 40, include_self)
    np.testing.assert_array_equal(indices.numpy(), slow_indices)
    np.testing.assert_allclose(distances.numpy(), slow_distances, rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_and_duplicates_go_to_the_lower_index(data: st.DataObject) -> None:
    n, d = data.draw(st.integers(2, 24)), data.draw(st.integers(1, 3))
    x = torch.tensor(data.draw(st.lists(st.integers(-1, 1), min_size=n * d, max_size=n * d))).view(n, d).float()
    include_self = data.draw(st.booleans())
    k = data.draw(st.integers(1, n if include_self else n - 1))
    slow = slow_knn(x, k, include_self)
    for small in (neighbors.SMALL, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(neighbors, "SMALL", small)
            distances, indices = knn(x, k, include_self=include_self)
        np.testing.assert_array_equal(indices.numpy(), slow[1])
        np.testing.assert_array_equal(distances.numpy(), slow[0])


def test_more_duplicates_than_candidates(path: str) -> None:
    x = torch.cat([torch.ones(100, 3), 2 * torch.ones(100, 3)])
    distances, indices = knn(x, 5)
    assert torch.equal(indices[:, 0], torch.arange(200))
    assert indices[150].tolist() == [150, 100, 101, 102, 103]
    assert not distances.any()
    assert 150 not in knn(x, 99, include_self=False)[1][150]


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_close_pairs_keep_their_distance(shift: float, path: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 32, generator=generator) + shift
    twins = x + 1e-4 * torch.randn(300, 32, generator=generator)
    both = torch.cat([x, twins])
    distances, indices = knn(both, 2)
    assert torch.equal(indices[:300, 1], torch.arange(300, 600))
    true = (x.double() - twins.double()).square().sum(1)
    torch.testing.assert_close(distances[:300, 1].double(), true, rtol=1e-6, atol=0)


def test_a_far_outlier_changes_nothing_else(path: str) -> None:
    x = real_features("digits", 300)
    before = knn(x, 20)[1]
    after = knn(torch.cat([x, torch.full((1, 64), 1e6)]), 20)[1]
    assert torch.equal(after[:300], before)


def test_queries_are_not_members(path: str) -> None:
    x = real_features("cells", 300)
    distances, indices = knn(x[:200], 3, queries=x[200:])
    rows = squared_distances(x[200:], x[:200])
    expected = rows.sort(dim=1, stable=True)
    assert torch.equal(indices, expected.indices[:, :3])
    torch.testing.assert_close(distances, expected.values[:, :3], rtol=1e-6, atol=0)
    same_distance, same = knn(x, 1, queries=x)
    assert torch.equal(same[:, 0], torch.arange(300))
    assert not same_distance.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype: torch.dtype, path: str) -> None:
    x = real_features("digits", 200).to(dtype)
    distances, indices = knn(x, 7)
    slow_distances, slow_indices = slow_knn(x, 7)
    np.testing.assert_array_equal(indices.numpy(), slow_indices)
    assert distances.dtype == torch.float32
    np.testing.assert_allclose(distances.numpy(), slow_distances, rtol=1e-6)


def test_autocast_and_tf32_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "SMALL", 0)
    monkeypatch.setattr(neighbors, "_has_faiss", lambda: False)
    x = real_features("digits", 400)
    expected = knn(x, 9)
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = knn(x, 9)
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_exact_arithmetic_sets_and_restores() -> None:
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    x = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), exact_arithmetic(torch.device("cpu")):
        assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert (x @ x).dtype == torch.float32
        assert not (x @ x).requires_grad
    assert [backend.fp32_precision for backend in backends] == before


def test_approximate_reaches_its_recall_and_says_it() -> None:
    x = real_features("patches")
    found = approximate_knn(x, 10, recall=0.97)
    distances, indices = knn(x, 10)
    hits = (found.indices[:, :, None] == indices[:, None]).any(2).float().mean()
    assert 0.97 <= found.measured_recall <= 1
    assert abs(float(hits) - found.measured_recall) < 0.03
    assert torch.equal(found.indices[:, 0], torch.arange(len(x)))
    assert (found.squared_distances.diff(dim=1) >= 0).all()
    same = found.indices == indices
    torch.testing.assert_close(found.squared_distances[same], distances[same], rtol=1e-6, atol=0)


def test_approximate_with_duplicates_and_without_self() -> None:
    x = torch.cat([torch.ones(60, 4), -torch.ones(60, 4)])
    found = approximate_knn(x, 20, include_self=False)
    assert not found.squared_distances.any()
    assert not (found.indices == torch.arange(120)[:, None]).any()
    assert all(len(set(row)) == 20 for row in found.indices.tolist())


def test_approximate_puts_a_missed_point_back() -> None:
    found = approximate_knn(torch.cat([torch.ones(60, 4), -torch.ones(60, 4)]), 5)
    assert torch.equal(found.indices[:, 0], torch.arange(120))
    assert all(len(set(row)) == 5 for row in found.indices.tolist())


@pytest.mark.parametrize("include_self", [True, False])
def test_neighbours_in_near_lists_are_found_exactly(include_self: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob is one list or a few, so that its points' neighbours are all in near ones; blocks end inside of lists."""
    monkeypatch.setattr(near_lists, "LIST_SAMPLE", 4)
    monkeypatch.setattr(near_lists, "BLOCK", 700)
    monkeypatch.setattr(neighbors, "SAMPLE", 2000)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 4, generator=generator) + 20 * torch.randn(50, 4, generator=generator).repeat(40, 1)
    found = approximate_knn(x, 20, include_self=include_self, recall=1.0)
    distances, indices = knn(x, 20, include_self=include_self)
    assert found.measured_recall == 1.0
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.squared_distances, distances, rtol=1e-6, atol=0)


def test_lists_that_tell_nothing_leave_the_exact_search() -> None:
    """In many directions all points are as far from one another."""
    x = torch.randn(4000, 512, generator=torch.Generator().manual_seed(0))
    found = approximate_knn(x, 5, recall=0.99)
    assert found.measured_recall == 1.0
    assert torch.equal(found.indices, knn(x, 5)[1])


def test_candidates_are_the_nearest_of_the_lists_near_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all pairs in float64, with the lists of each point looked up one by one."""
    monkeypatch.setattr(near_lists, "BLOCK", 300)
    threads = torch.get_num_threads()
    x, m, count = real_features("digits", 1000).float(), 9, 12
    lists = NearLists(x, seed=1)
    distances = torch.cdist(x.double(), x.double())
    order = torch.cdist(x.double() - x.double().mean(0), lists.centroids.double()).argsort(1)
    met = torch.zeros(len(x), dtype=torch.int64)
    for rows, candidates in lists.candidates(m, count):
        for row, found in zip(rows.tolist(), candidates.tolist(), strict=True):
            met[row] += 1
            inside = torch.nonzero(torch.isin(lists.label, order[row, :count]))[:, 0]
            nearest = inside[distances[row, inside].argsort()[:m]]
            assert sorted(found) == sorted([*nearest.tolist(), *[-1] * (m - len(nearest))])
    assert (met == 1).all()
    assert torch.get_num_threads() == threads


def test_many_copies_are_the_nearest_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """More copies than candidates: all neighbours are as near as the last of them."""
    x = torch.cat([real_features("digits", 1000).float(), real_features("digits", 5).float().repeat(60, 1)])
    monkeypatch.setattr(neighbors, "_complete_search", None)  # the lists themselves hold them
    monkeypatch.setattr(neighbors, "SMALL", 0)
    found = approximate_knn(x, 20, recall=0.9)
    assert not found.squared_distances[1000:].any()
    assert not found.squared_distances[:5].any()


def test_enough_lists_hold_the_share() -> None:
    x = real_features("digits", 1000).float()
    lists, (_, truth) = NearLists(x, seed=1), knn(x, 10)
    order = torch.cdist(x[:50].double() - x.double().mean(0), lists.centroids.double()).argsort(1)
    places = torch.stack([order[i].argsort()[lists.label[truth[i]]] for i in range(50)])
    for recall in (0.5, 0.9, 1.0):
        count = lists.enough(x[:50], truth[:50], recall)
        assert (places < count).double().mean() >= recall
        assert (places < count - 1).double().mean() < recall


def test_rule_for_the_approximate_index(monkeypatch: pytest.MonkeyPatch) -> None:
    x = real_features("digits")
    exact = nearest_neighbors(x, 5)
    assert exact.measured_recall == 1.0
    assert torch.equal(exact.indices, knn(x, 5)[1])
    monkeypatch.setattr(neighbors, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(neighbors, "approximate_knn", lambda *_, **__: "approximate")
    assert nearest_neighbors(x, 5) == "approximate"


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (torch.ones(5, 2), 6, "k=6 neighbours: expected a number from 1 to 5"),
        (torch.ones(5, 2), 0, "k=0 neighbours"),
        (torch.ones(5), 1, r"expected a floating-point matrix \[images, dimensions\], got float32 \[5\]"),
        (torch.ones(5, 2, dtype=torch.int64), 1, r"got int64 \[5, 2\]"),
        (torch.tensor([[0.0], [float("nan")]]), 1, "NaN or infinite values in row 1;"),
        (torch.full((9, 1), float("inf")), 1, "in rows 0, 1, 2, 3, 4 and 4 more"),
    ],
)
def test_bad_input_is_one_clear_line(features: Tensor, k: int, message: str) -> None:
    with pytest.raises(UslError, match=message) as caught:
        knn(features, k)
    assert "\n" not in str(caught.value)


def test_bad_queries() -> None:
    with pytest.raises(UslError, match="queries have 3 dimensions, the features 2"):
        knn(torch.ones(4, 2), 1, queries=torch.ones(4, 3))
    with pytest.raises(UslError, match="from 1 to 3"):
        knn(torch.ones(4, 2), 4, include_self=False)


def test_unit_rows() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -1e-30]])
    assert unit_rows(x).tolist() == [[torch.tensor(0.6).item(), torch.tensor(0.8).item()], [0.0, -1.0]]
    with pytest.raises(UslError, match="all zeros in rows 0, 2;"):
        unit_rows(torch.tensor([[0.0], [1.0], [0.0]]))


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("same", [1, 40])
def test_truth_by_parts_is_that_of_all(monkeypatch: pytest.MonkeyPatch, include_self: bool, same: int) -> None:
    """Also where a point has more equals of a lower number than neighbours."""
    x = real_features("digits", 300)
    x = torch.cat([x, x[:1].expand(same, -1)])
    sample = torch.tensor([0, 7, 120, 299, len(x) - 1])
    monkeypatch.setattr(neighbors, "chunks", lambda n, *_: [slice(i, min(n, i + 70)) for i in range(0, n, 70)])
    found = neighbors._truth(x, sample, 9, include_self)
    assert torch.equal(found, knn(x, 9, include_self=include_self)[1][sample])
