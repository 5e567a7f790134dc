"""Balanced labels against a plain float64 Sinkhorn-Knopp and an exact solver of the transport problem."""

import multiprocessing
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.pretrain.sela import sinkhorn_labels
from usl_lightning.vectors import sinkhorn
from usl_lightning.vectors.sinkhorn import balanced_labels


def plain_sinkhorn(logits: Tensor, power: float, tolerance: float) -> tuple[Tensor, int]:
    """The published algorithm, all in float64: the labels, and how many iterations they took."""
    p = torch.softmax(logits.double(), 1) ** power
    n, k = p.shape
    c, error, iterations = torch.full((n,), 1 / n, dtype=torch.float64), torch.inf, 0
    while error >= tolerance:
        r = 1 / (k * (c @ p))
        new = 1 / (n * (p @ r))
        error, c, iterations = float((c / new - 1).abs().sum()), new, iterations + 1
    return (p * r * c[:, None]).argmax(1), iterations


def random_logits(n: int, k: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def network_logits(n: int, k: int, dim: int = 64, seed: int = 0) -> Tensor:
    """A linear head on patches of digits: correlated, unbalanced scores."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32)
    x = F.normalize(pixels[torch.randint(len(pixels), (n,), generator=generator)] - pixels.mean(0), dim=1)
    x = x + 0.1 * torch.randn(n, 64, generator=generator)
    return x @ torch.randn(dim, k, generator=generator)


def agreement(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


@given(st.integers(2, 60), st.integers(1, 8), st.floats(0.5, 4), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_labels_are_those_of_plain_sinkhorn(n: int, k: int, power: float, seed: int) -> None:
    logits = random_logits(n, k, seed).double()
    ours = sinkhorn_labels(logits, power=power, tolerance=1e-6)
    assert ours.shape == (n,)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, plain_sinkhorn(logits, power, 1e-6)[0])


@pytest.mark.parametrize("make", [random_logits, network_logits])
@pytest.mark.parametrize(("k", "power"), [(10, 10.0), (50, 25.0), (128, 25.0)])
def test_labels_of_thousands_are_those_of_plain_sinkhorn(make: Any, k: int, power: float) -> None:
    logits = make(4000, k)
    theirs, _ = plain_sinkhorn(logits, power, 0.1)
    assert agreement(sinkhorn_labels(logits, power=power, tolerance=0.1), theirs) >= 0.999


@pytest.mark.parametrize(
    ("n", "k", "make"), [(6000, 10, network_logits), (6000, 30, random_logits), (50_000, 100, network_logits)]
)
def test_every_label_is_used_equally_often(n: int, k: int, make: Any) -> None:
    logits = make(n, k)
    greedy = torch.bincount(logits.argmax(1), minlength=k)
    assert make is random_logits or float(greedy.max()) > 1.5 * n / k, "without balance it is far off"
    counts = torch.bincount(sinkhorn_labels(logits, power=25, tolerance=0.1), minlength=k)
    print(f"K={k}: {int(counts.min())} to {int(counts.max())} of {n // k} each")
    assert 0.9 * n / k <= counts.min() <= counts.max() <= 1.1 * n / k


def test_a_large_power_finds_the_best_balanced_assignment() -> None:
    """Of all assignments with equally many images a label, the one of the largest sum of log-probabilities."""
    n, k = 60, 6
    scores = torch.log_softmax(random_logits(n, k, seed=1, scale=2).double(), 1)
    rows, slots = linear_sum_assignment(-np.repeat(scores.numpy(), n // k, axis=1))
    best = torch.from_numpy(slots[np.argsort(rows)] // (n // k))
    ours = sinkhorn_labels(scores, power=200, tolerance=1e-3)
    assert float(scores.gather(1, best[:, None]).sum()) == pytest.approx(float(scores.gather(1, ours[:, None]).sum()))
    assert torch.equal(torch.bincount(ours), torch.full((k,), n // k))


@pytest.mark.parametrize(
    ("n", "k"), [(5000, 500), pytest.param(20_000, 3000, marks=pytest.mark.slow, id="three_thousand_labels")]
)
def test_power_25_where_float32_underflows(n: int, k: int) -> None:
    logits = network_logits(n, k)
    assert float((torch.softmax(logits, 1) ** 25 > 0).double().mean()) < 0.2, "float32 holds little of P^25"
    theirs, iterations = plain_sinkhorn(logits, 25, 0.1)
    ours = sinkhorn_labels(logits, power=25, tolerance=0.1)
    counts = torch.bincount(ours, minlength=k)
    print(f"{iterations} iterations, agreement {agreement(ours, theirs):.5f}, {counts.min()} to {counts.max()} each")
    assert agreement(ours, theirs) >= 0.999


def test_scores_that_no_float32_row_can_hold_are_balanced() -> None:
    """Nine tenths of the images prefer label 0 by 150 nats: their other entries are 0 in float32 until absorbed."""
    n, k = 500, 5
    logits = random_logits(n, k, scale=0.3)
    logits[: 9 * n // 10, 0] += 6
    assert float((25 * (logits - logits.amax(1, keepdim=True))).exp().median()) == 0
    ours = sinkhorn_labels(logits, power=25, tolerance=0.01)
    assert agreement(ours, plain_sinkhorn(logits, 25, 0.01)[0]) >= 0.998
    counts = torch.bincount(ours, minlength=k)
    assert 0.9 * n / k <= counts.min() <= counts.max() <= 1.1 * n / k


@pytest.mark.parametrize("entries", [1, 7 * 33, 10**6])
def test_chunks_do_not_matter(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(300, 7)
    whole = sinkhorn_labels(logits, power=10, tolerance=1e-3)
    monkeypatch.setattr(sinkhorn, "CHUNK_ENTRIES", entries)
    assert torch.equal(sinkhorn_labels(logits, power=10, tolerance=1e-3), whole)


def test_a_heads_logits_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkhorn, "CHUNK_ENTRIES", 400)
    features, weight = random_logits(500, 6), random_logits(20, 6, seed=1)
    seen: list[int] = []

    def scores(part: Tensor) -> Tensor:
        seen.append(len(part))
        return F.linear(part, weight)

    labels = balanced_labels(features, scores, 20, power=10, tolerance=0.01)
    assert max(seen) == 20
    assert torch.equal(labels, sinkhorn_labels(features @ weight.T, power=10, tolerance=0.01))


def test_logits_are_left_alone_and_constants_in_a_row_change_nothing() -> None:
    logits = random_logits(200, 9).double()
    before = logits.clone()
    labels = sinkhorn_labels(logits, power=25, tolerance=1e-6)
    assert torch.equal(logits, before)
    shift = 100 * random_logits(200, 1, seed=5).double()
    assert torch.equal(sinkhorn_labels(logits + shift, power=25, tolerance=1e-6), labels)


def test_labels_are_the_columns_whatever_their_order() -> None:
    logits, order = random_logits(200, 9).double(), torch.tensor([3, 1, 4, 0, 5, 8, 2, 6, 7])
    labels = sinkhorn_labels(logits, power=25, tolerance=1e-6)
    assert torch.equal(order[sinkhorn_labels(logits[:, order], power=25, tolerance=1e-6)], labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    logits = random_logits(300, 8).to(dtype)
    labels = sinkhorn_labels(logits, power=10, tolerance=0.01)
    assert torch.equal(labels, plain_sinkhorn(logits, 10, 0.01)[0])


def test_the_iteration_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinkhorn, "MAX_ITERATIONS", 3)
    assert len(sinkhorn_labels(random_logits(100, 10), power=25, tolerance=1e-300)) == 100


@pytest.mark.parametrize(
    ("logits", "power", "tolerance", "message"),
    [
        (torch.zeros(3), 1.0, 0.1, r"logits \[3\] torch.float32: expected class scores \[n, K\]"),
        (torch.zeros(3, 0), 1.0, 0.1, r"logits \[3, 0\]"),
        (torch.zeros(3, 2, dtype=torch.long), 1.0, 0.1, "of a float type"),
        (torch.zeros(3, 2), 0.0, 0.1, "power 0.0, tolerance 0.1 .* expected both above 0"),
        (torch.zeros(3, 2), 1.0, 0.0, "expected both above 0"),
        (torch.tensor([[0.0, torch.nan]]), 1.0, 0.1, "not all finite"),
        (torch.tensor([[0.0, 1.0], [0.0, torch.inf]]), 1.0, 0.1, "not all finite"),
    ],
)
def test_mistakes_are_told_in_a_line(logits: Tensor, power: float, tolerance: float, message: str) -> None:
    with pytest.raises(UslError, match=message) as error:
        sinkhorn_labels(logits, power=power, tolerance=tolerance)
    assert "\n" not in str(error.value)


def _share(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    logits = network_logits(901, 30)
    own = logits[:400] if rank == 0 else logits[400:]
    torch.save(sinkhorn_labels(own, power=25, tolerance=1e-3, distributed=True), folder / f"{rank}.pt")
    torch.save(sinkhorn_labels(own, power=25, tolerance=1e-3), folder / f"alone{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_rows_may_be_split_over_processes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_share, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    whole = sinkhorn_labels(network_logits(901, 30), power=25, tolerance=1e-3)
    assert torch.equal(torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]), whole)
    alone = torch.cat([torch.load(tmp_path / f"alone{rank}.pt") for rank in range(2)])
    assert not torch.equal(alone, whole), "each share balanced by itself is something else"
