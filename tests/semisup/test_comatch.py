"""CoMatch's pieces against loops over samples and pairs; bank and alignment against lists; its step by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, SmallGreyView, Weak
from usl_lightning.models.guesses import Ring, align
from usl_lightning.semisup.comatch import (
    CoMatch,
    confident_cross_entropy,
    graph_contrastive_loss,
    pseudo_label_graph,
    smooth,
)

SIZES = (st.integers(1, 9), st.integers(2, 5), st.integers(0, 10_000))


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distributions(n: int, c: int, seed: int, scale: float = 3.0) -> Tensor:
    return numbers(n, c, seed=seed, scale=scale).softmax(1)


def directions(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(numbers(n, d, seed=seed), dim=1)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def normalised(row: list[float]) -> list[float]:
    return [v / sum(row) for v in row]


def slow_align(probs: list[list[float]], mean: list[float]) -> list[list[float]]:
    return [normalised([p / m for p, m in zip(row, mean, strict=True)]) for row in probs]


def slow_smooth(
    probs: list[list[float]], z: list[list[float]], bank: list[tuple[list[float], list[float]]], weight: float, t: float
) -> list[list[float]]:
    """Equations 4 and 5 with a bank of (embedding, distribution)."""
    smoothed = []
    for p, e in zip(probs, z, strict=True):
        attention = normalised([math.exp(dot(e, f) / t) for f, _ in bank])
        mixed = [sum(a * q[c] for a, (_, q) in zip(attention, bank, strict=True)) for c in range(len(p))]
        smoothed.append([weight * own + (1 - weight) * other for own, other in zip(p, mixed, strict=True)])
    return smoothed


def slow_graph(probs: list[list[float]], threshold: float) -> list[list[float]]:
    """Equation 7."""
    rows = []
    for i, p in enumerate(probs):
        row = [1.0 if i == j else dot(p, q) for j, q in enumerate(probs)]
        rows.append(normalised([v if v >= threshold else 0.0 for v in row]))
    return rows


def slow_contrastive(z0: Tensor, z1: Tensor, graph: list[list[float]], t: float) -> Tensor:
    """Equations 8 to 10, pair by pair, with a graph for autograd."""
    total = z0.new_zeros(())
    for i in range(len(z0)):
        similarities = [torch.exp((z0[i] * z1[j]).sum() / t) for j in range(len(z1))]
        for j, similarity in enumerate(similarities):
            total = total - graph[i][j] * torch.log(similarity / sum(similarities))
    return total / len(z0)


def slow_cross_entropy(logits: Tensor, targets: list[list[float]], threshold: float) -> tuple[float, list, list[bool]]:
    """Equation 3: value, gradient, mask."""
    total, gradient, mask = 0.0, [], []
    for row, target in zip(logits.tolist(), targets, strict=True):
        q = normalised([math.exp(v) for v in row])
        passes = max(target) >= threshold
        mask.append(passes)
        total -= sum(t * math.log(v) for t, v in zip(target, q, strict=True)) if passes else 0.0
        gradient.append([(v - t) / len(logits) if passes else 0.0 for t, v in zip(target, q, strict=True)])
    return total / len(logits), gradient, mask


def assert_rows(got: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-9, atol=1e-10)


# Pieces --------------------------------------------------------------------------------------------------


@given(*SIZES)
def test_alignment(n: int, c: int, seed: int) -> None:
    probs, mean = distributions(n, c, seed), distributions(1, c, seed + 1)[0]
    assert_rows(align(probs, mean), slow_align(probs.tolist(), mean.tolist()))


def test_alignment_with_shares_of_the_classes() -> None:
    """Each class first divided by how often it is predicted, then multiplied by how often it is to be (ReMixMatch)."""
    probs, mean, target = torch.tensor([[0.6, 0.4]]), torch.tensor([0.8, 0.2]), torch.tensor([0.75, 0.25])
    ratios = [0.6 / 0.8 * 0.75, 0.4 / 0.2 * 0.25]
    assert align(probs, mean, target)[0].tolist() == pytest.approx([ratio / sum(ratios) for ratio in ratios])
    assert torch.allclose(align(probs, mean, torch.full((2,), 0.5)), align(probs, mean))


def test_alignment_makes_a_biased_batch_fair_and_survives_a_class_nobody_predicts() -> None:
    biased = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    assert align(biased, biased.mean(0))[:, 1].mean() > 2 * biased[:, 1].mean()
    assert align(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0, 0.0])).tolist() == [[1.0, 0.0]]


@given(*SIZES, st.floats(0, 1), st.sampled_from([0.1, 0.2, 1.0]))
def test_smoothing(n: int, c: int, seed: int, weight: float, temperature: float) -> None:
    probs, z = distributions(n, c, seed), directions(n, 4, seed + 1)
    bank_probs, bank_z = distributions(7, c, seed + 2), directions(7, 4, seed + 3)
    got = smooth(probs, z, bank_probs, bank_z, weight=weight, temperature=temperature)
    bank = list(zip(bank_z.tolist(), bank_probs.tolist(), strict=True))
    assert_rows(got, slow_smooth(probs.tolist(), z.tolist(), bank, weight, temperature))
    torch.testing.assert_close(got.sum(1), torch.ones(n, dtype=torch.float64))


@given(*SIZES, st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_graph(n: int, c: int, seed: int, threshold: float) -> None:
    probs = distributions(n, c, seed, scale=6.0)
    assert_rows(pseudo_label_graph(probs, threshold=threshold), slow_graph(probs.tolist(), threshold))


def test_the_graph_connects_equal_labels_and_keeps_self_loops() -> None:
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(pseudo_label_graph(probs, threshold=0.8), expected)


@given(*SIZES)
@settings(max_examples=30)
def test_contrastive_loss_and_its_gradients(n: int, c: int, seed: int) -> None:
    graph = pseudo_label_graph(distributions(n, c, seed, scale=6.0), threshold=0.5)
    gradients, losses = [], []
    for slow in (False, True):
        z0, z1 = directions(n, 4, seed + 1).requires_grad_(), directions(n, 4, seed + 2).requires_grad_()
        loss = (
            slow_contrastive(z0, z1, graph.tolist(), 0.2)
            if slow
            else graph_contrastive_loss(z0, z1, graph, temperature=0.2)
        )
        loss.backward()
        losses.append(loss.detach())
        gradients.append((z0.grad, z1.grad))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-9)


def test_without_edges_the_contrastive_loss_is_of_each_image_alone() -> None:
    """With self-loops only it is InfoNCE: the other view is the positive, all other images are negatives."""
    z0, z1 = directions(6, 4, 0), directions(6, 4, 1)
    expected = F.cross_entropy(z0 @ z1.T / 0.2, torch.arange(6))
    got = graph_contrastive_loss(z0, z1, torch.eye(6, dtype=torch.float64), temperature=0.2)
    torch.testing.assert_close(got, expected)


@given(*SIZES, st.sampled_from([0.0, 0.6, 0.95]))
def test_confident_cross_entropy_and_its_gradient(n: int, c: int, seed: int, threshold: float) -> None:
    logits, targets = numbers(n, c, seed=seed, scale=2.0).requires_grad_(), distributions(n, c, seed + 1, scale=6.0)
    loss, mask = confident_cross_entropy(logits, targets, threshold=threshold)
    loss.backward()
    value, gradient, passes = slow_cross_entropy(logits, targets.tolist(), threshold)
    assert loss.item() == pytest.approx(value, abs=1e-10)
    assert mask.tolist() == passes
    assert_rows(logits.grad, gradient)


def test_the_threshold_itself_passes() -> None:
    targets = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    assert confident_cross_entropy(torch.zeros(2, 2), targets, threshold=0.75)[1].tolist() == [True, False]


# Ring ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_the_ring_keeps_the_newest_rows(size: int, writes: list[int]) -> None:
    ring, stream = Ring(size, 2), []
    assert not ring.full()
    for n in writes:
        rows = torch.arange(len(stream), len(stream) + n).float()[:, None] * torch.tensor([1.0, -1.0])
        stream += rows.tolist()
        ring.write(rows)
        newest = stream[-size:]
        assert sorted(ring.rows.tolist())[-len(newest) :] == sorted(newest)
        assert bool(ring.full()) == (len(stream) >= size)
        assert bool(ring.full(before=n)) == (len(stream) - n >= size)
        torch.testing.assert_close(ring.mean(), torch.tensor(newest).mean(0))
    assert ring.state_dict().keys() == {"rows", "written"}


def test_the_oldest_rows_go_first() -> None:
    ring = Ring(5, 1)
    for start in (0, 3, 6):
        ring.write(torch.arange(start, start + 3).float()[:, None])
    assert ring.rows[:, 0].tolist() == [5, 6, 7, 8, 4]


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))
VIEWS = (Weak(), FixMatchStrong(), SmallGreyView())


def batch(n: int, labels: list[int] | None = None, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(100 * step + n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    known = torch.tensor([-1] * n if labels is None else labels)
    return Batch(images, known, torch.arange(n), Key.of(step, slots=torch.arange(n)))


def comatch(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[CoMatch, dict[str, Any]]:
    """A network without norms whose guesses differ (its head: the three main directions), and what it logs."""
    torch.manual_seed(0)
    options = {
        "threshold": 0.6, "graph_threshold": 0.45, "bank_size": 26, "aligned_batches": 3, "embedding_dim": 5,
        "unlabelled_weight": 3.0, "contrastive_weight": 2.0, **options,
    }  # fmt: skip
    model = CoMatch(GREY, *VIEWS, Optimization(), backbone="small_nf", **options)
    with torch.no_grad():
        features = model.model.encoder(batch(50).images)
        spread = features - features.mean(0)
        model.model.head.weight.copy_(torch.linalg.svd(spread, full_matrices=False).Vh[:3] / 4 / spread.std())
        model.model.head.bias.copy_(-(model.model.head.weight @ features.mean(0)))
        model.projector[0].weight.mul_(50)  # embeddings that differ
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    return model, logged


def test_32_steps_are_algorithm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alignment and bank against lists that grow; the bank of 26 is full after two batches of 3 + 10.

    The published code smooths from `it > queue_batch` on, `it` from 0: here the fourth step, though a full bank meets
    the third.
    """
    model, logged = comatch(monkeypatch)
    history: list[list[float]] = []
    bank: list[tuple[list[float], list[float]]] = []
    masks, neighbors, moved = [], [], []
    for step in range(32):
        labelled, unlabelled = batch(3, [0, 1, 2], step), batch(10, step=step + 50)
        calls: list[int] = []
        hook = model.model.encoder.register_forward_hook(lambda _m, i, _o, calls=calls: calls.append(len(i[0])))
        loss = model.training_step(SemiBatch(labelled, unlabelled), 0)
        hook.remove()
        assert calls == [3 + 3 * 10], "one forward pass"

        features = [
            torch.cat([model.model.encoder(image[None]) for image in view(part.images, part.key.fold(name))])
            for view, part, name in (
                (model.weak, labelled, "weak"),
                (model.weak, unlabelled, "weak"),
                (model.strong, unlabelled, "strong"),
                (model.other_strong, unlabelled, "other strong"),
            )
        ]
        x, weak, strong, _ = (model.model.head(f).double() for f in features)
        z_x, z_weak, z0, z1 = (F.normalize(model.projector(f), dim=1).double() for f in features)
        probs = weak.softmax(1).tolist()
        history = [*history, [sum(column) / 10 for column in zip(*probs, strict=True)]][-3:]
        aligned = slow_align(probs, [sum(column) / len(history) for column in zip(*history, strict=True)])
        targets = slow_smooth(aligned, z_weak.tolist(), bank, 0.9, 0.2) if step > 2 else aligned
        one_hot = [[float(c == label) for c in range(3)] for label in (0, 1, 2)]
        entries = zip([*z_weak.tolist(), *z_x.tolist()], [*aligned, *one_hot], strict=True)
        bank = [*bank, *entries][-26:]
        graph = slow_graph(targets, 0.45)
        supervised = F.cross_entropy(x, labelled.labels).item()
        unsupervised, _, mask = slow_cross_entropy(strong, targets, 0.6)
        contrastive = slow_contrastive(z0, z1, graph, 0.2).item()

        assert float(logged["supervised_loss"]) == pytest.approx(supervised, rel=1e-4)
        assert float(logged["unsupervised_loss"]) == pytest.approx(unsupervised, rel=1e-4)
        assert float(logged["contrastive_loss"]) == pytest.approx(contrastive, rel=1e-4)
        assert loss.item() == pytest.approx(supervised + 3.0 * unsupervised + 2.0 * contrastive, rel=1e-4)
        assert float(logged["mask_rate"]) == pytest.approx(sum(mask) / 10)
        edges = sum(v > 0 for row in graph for v in row) / 10 - 1
        assert float(logged["neighbors"]) == pytest.approx(edges, abs=1e-5)
        masks.append(sum(mask))
        neighbors.append(edges)
        moved.append(max(abs(a - b) for s, t in zip(aligned, targets, strict=True) for a, b in zip(s, t, strict=True)))
    assert 0 < sum(masks) < 320, "some guesses are confident, some not"
    assert 0 < sum(neighbors) < 32 * 9, "some images are connected, some not"
    assert [m > 0.01 for m in moved] == [False] * 3 + [True] * 29


def test_pseudo_labels_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weak views teach; nothing flows back into them, while both strong views learn from the graph."""
    model, _ = comatch(monkeypatch)
    inputs = numbers(4, 3, seed=0), directions(4, 5, 1), directions(2, 5, 2)
    weak, z_weak, z_labelled = (value.float().requires_grad_() for value in inputs)
    targets = model.pseudo_labels(weak, z_weak, torch.tensor([0, 1]), z_labelled)
    assert not targets.requires_grad
    assert not model.bank_embeddings.rows.requires_grad
    model.training_step(SemiBatch(batch(3, [0, 1, 2]), batch(10)), 0).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.projector.parameters())


def test_labelled_images_are_in_the_bank_as_one_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = comatch(monkeypatch)
    model.training_step(SemiBatch(batch(3, [2, 0, 2]), batch(10)), 0)
    assert model.bank_probs.rows[10:13].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert int(model.bank_probs.written) == int(model.bank_embeddings.written) == 13
    torch.testing.assert_close(model.bank_embeddings.rows[:13].norm(dim=1), torch.ones(13))


def test_autocast_does_not_blur_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = comatch(monkeypatch)
    graphs: list[Tensor] = []

    def spy(probs: Tensor, *, threshold: float) -> Tensor:
        graphs.append(pseudo_label_graph(probs, threshold=threshold))
        return graphs[-1]

    monkeypatch.setattr("usl_lightning.semisup.comatch.pseudo_label_graph", spy)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.training_step(SemiBatch(batch(3, [0, 1, 2]), batch(10)), 0)
    assert graphs[0].dtype == loss.dtype == torch.float32
    torch.testing.assert_close(graphs[0].sum(1), torch.ones(10))
