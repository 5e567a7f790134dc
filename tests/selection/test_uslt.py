"""USL-T's losses against loops over samples, their gradients, the order of the average; both collapses recover."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_features import real_features
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import Key
from usl_lightning.data.sampling import drawn_neighbors
from usl_lightning.selection.uslt import Reduction, global_loss, local_loss
from usl_lightning.vectors.neighbors import knn

SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 6))


def logits(b: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    anchor, other = (3 * torch.randn(b, c, generator=generator, dtype=torch.float64) for _ in range(2))
    return anchor.requires_grad_(), other.requires_grad_()


def probabilities(c: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 10_000)
    p = torch.rand(c, generator=generator, dtype=torch.float64) + 0.01
    return p / p.sum()


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(row)) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def slow_local(
    anchor: Tensor, neighbor: Tensor, mean: Tensor, alpha: float, t: float, momentum: float
) -> tuple[float, list[list[float]], list[float]]:
    """The published code's form, sample by sample: the loss, its targets, and the average after it."""
    total, targets, batch_mean = 0.0, [], [0.0] * len(mean)
    for x, y in zip(anchor.tolist(), neighbor.tolist(), strict=True):
        adjusted = softmax([z - alpha * math.log(m) for z, m in zip(y, mean.tolist(), strict=True)])
        sharp = [p ** (1 / t) for p in adjusted]
        target = [p / sum(sharp) for p in sharp]
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(target, softmax(x), strict=True) if p > 0)
        targets.append(target)
        batch_mean = [m + p / len(anchor) for m, p in zip(batch_mean, softmax(y), strict=True)]
    new = [momentum * old + (1 - momentum) * m for old, m in zip(mean.tolist(), batch_mean, strict=True)]
    return total / len(anchor), targets, [m / sum(new) for m in new]


def slow_global(
    anchor: Tensor, target: Tensor, threshold: float, reweight: bool, reduction: str, renormalize: bool = False
) -> float:
    counted = []
    for x, y in zip(anchor.tolist(), target.tolist(), strict=True):
        p = softmax(y)
        if max(p) > threshold:
            cluster = p.index(max(p))
            counted.append((cluster, -math.log(softmax(x)[cluster])))
    clusters = [cluster for cluster, _ in counted]
    weights = [len(counted) / clusters.count(cluster) if reweight else 1.0 for cluster in clusters]
    if renormalize and counted:
        weights = [w * len(counted) / sum(weights) for w in weights]
    total = sum(w * loss for w, (_, loss) in zip(weights, counted, strict=True))
    return total / (len(anchor) if reduction == "batch" else max(1.0, sum(weights)))


@given(SHAPES, st.floats(0, 5), st.floats(0.2, 1), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=60)
def test_local_loss_is_the_loops(shape: tuple[int, int], alpha: float, t: float, momentum: float, seed: int) -> None:
    anchor, neighbor = logits(*shape, seed)
    mean = probabilities(shape[1], seed)
    loss, new = local_loss(anchor, neighbor, mean, adjustment=alpha, temperature=t, momentum=momentum)
    value, targets, average = slow_local(anchor, neighbor, mean, alpha, t, momentum)
    assert loss.item() == pytest.approx(value, rel=1e-8, abs=1e-10)
    torch.testing.assert_close(new, torch.tensor(average, dtype=torch.float64))
    loss.backward()
    expected = (anchor.detach().softmax(1) - torch.tensor(targets, dtype=torch.float64)) / len(anchor)
    torch.testing.assert_close(anchor.grad, expected, rtol=1e-7, atol=1e-9)
    assert neighbor.grad is None, "the target is a constant"


@given(
    SHAPES,
    st.sampled_from([0.0, 0.4, 0.7, 0.95, 1.0]),
    st.booleans(),
    st.sampled_from(["weights", "batch"]),
    st.booleans(),
    st.integers(0, 1000),
)
@settings(max_examples=120)
def test_global_loss_is_the_loops(
    shape: tuple[int, int], threshold: float, reweight: bool, reduction: Reduction, renormalize: bool, seed: int
) -> None:
    anchor, target = logits(*shape, seed)
    loss = global_loss(
        anchor, target, threshold=threshold, reweight=reweight, reduction=reduction, renormalize=renormalize
    )
    slow = slow_global(anchor, target, threshold, reweight, reduction, renormalize)
    assert loss.item() == pytest.approx(slow, abs=1e-10)
    loss.backward()
    assert anchor.grad is not None
    assert target.grad is None, "the label is a constant"


@pytest.mark.parametrize("reduction", ["weights", "batch"])
def test_gradients_are_those_of_finite_differences(reduction: Reduction) -> None:
    anchor, other = logits(6, 4, 1)
    other, mean = other.detach(), probabilities(4, 1)
    assert torch.autograd.gradcheck(
        lambda a: local_loss(a, other, mean, adjustment=2.5, temperature=0.5, momentum=0.5)[0], anchor
    )
    assert torch.autograd.gradcheck(lambda a: global_loss(a, other, threshold=0.5, reduction=reduction), anchor)


def test_nothing_sure_is_zero_with_a_graph() -> None:
    anchor, target = logits(4, 3, 0)
    for reweight in (True, False):
        for reduction in ("weights", "batch"):
            loss = global_loss(anchor, target * 0, threshold=0.5, reweight=reweight, reduction=reduction)  # type: ignore[arg-type]
            assert loss.item() == 0
            (gradient,) = torch.autograd.grad(loss, anchor)
            assert not gradient.any()


def test_the_threshold_itself_does_not_count() -> None:
    even = torch.zeros(3, 2)
    assert global_loss(even, even, threshold=0.5).item() == 0
    assert global_loss(even, even, threshold=0.4999).item() == pytest.approx(math.log(2))
    assert global_loss(even, even, threshold=0.0, reweight=False).item() == pytest.approx(math.log(2))


def test_reweighted_every_cluster_counts_the_same() -> None:
    """The mean over clusters of their mean cross-entropies, however many images they have."""
    target = 20 * torch.eye(3)[[0, 0, 0, 0, 1]]
    anchor = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    losses = torch.nn.functional.cross_entropy(anchor, target.argmax(1), reduction="none")
    by_cluster = (losses[:4].mean() + losses[4]) / 2
    torch.testing.assert_close(global_loss(anchor, target, threshold=0.9), by_cluster)
    torch.testing.assert_close(global_loss(anchor, target, threshold=0.9, reduction="batch"), 2 * by_cluster)
    torch.testing.assert_close(global_loss(anchor, target, threshold=0.9, reweight=False), losses.mean())


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(UslError, match="reduction 'mean': expected 'weights' or 'batch'"):
        global_loss(torch.zeros(2, 2), torch.zeros(2, 2), threshold=0.5, reduction="mean")  # type: ignore[arg-type]


def test_the_average_is_updated_after_its_use_and_weighs_the_old_value() -> None:
    anchor, neighbor = logits(5, 3, 2)
    old, settings_ = probabilities(3, 2), {"adjustment": 5.0, "temperature": 0.25, "momentum": 0.8}
    before = old.clone()
    loss, new = local_loss(anchor, neighbor, old, **settings_)
    assert torch.equal(old, before), "the argument is left alone"
    torch.testing.assert_close(new, 0.8 * old + 0.2 * neighbor.detach().softmax(1).mean(0))
    assert not new.requires_grad
    with_new = local_loss(anchor, neighbor, new, **settings_)[0]
    assert loss.item() == pytest.approx(slow_local(anchor, neighbor, old, 5.0, 0.25, 0.8)[0])
    assert abs(loss.item() - with_new.item()) > 1e-3


def test_neither_empty_clusters_nor_sure_predictions_give_nan() -> None:
    mean = torch.tensor([1.0, 0.0, 0.0])
    sure = torch.tensor([[200.0, -200.0, -200.0], [200.0, -200.0, 0.0]], requires_grad=True)
    loss, new = local_loss(sure, sure, mean, adjustment=5.0, temperature=0.25, momentum=0.5)
    total = loss + global_loss(sure, sure, threshold=0.95)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(sure.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(new).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    anchor, neighbor = (x.detach().to(dtype) for x in logits(8, 5, 3))
    mean = probabilities(5, 3).float()
    kept = {"adjustment": 5.0, "temperature": 0.25, "momentum": 0.5}
    with torch.autocast("cpu", torch.bfloat16):
        loss, new = local_loss(anchor, neighbor, mean, **kept)
        other = global_loss(anchor, neighbor, threshold=0.5)
    assert loss.dtype == new.dtype == other.dtype == torch.float32
    torch.testing.assert_close(loss, local_loss(anchor.float(), neighbor.float(), mean, **kept)[0])
    torch.testing.assert_close(other, global_loss(anchor.float(), neighbor.float(), threshold=0.5))


# Collapses -----------------------------------------------------------------------------------------------

CLUSTERS = 10


def learn(weight: Tensor, bias: Tensor, steps: int, *, adjustment: float = 5.0, temperature: float = 0.25) -> Tensor:
    """Predictions [n, c] of digits' pixels after training a linear head with the local loss alone."""
    x = real_features("digits", 1000)
    x = x - x.mean(0)
    neighbors = knn(x, 21)[1]
    mean, images = (x @ weight.T + bias).softmax(1).mean(0), torch.arange(len(x))
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], 0.02)
    for step in range(steps):
        drawn = drawn_neighbors(neighbors, images, Key.of(0, step, slots=images))
        z = x @ weight.T + bias
        loss, mean = local_loss(z, z[drawn], mean, adjustment=adjustment, temperature=temperature, momentum=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (x @ weight.T + bias).detach().softmax(1)


def random_head(scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(CLUSTERS, 64, generator=generator), torch.zeros(CLUSTERS)


def one_cluster() -> tuple[Tensor, Tensor]:
    weight, bias = random_head(0.1)
    bias[0] = 10.0
    return weight, bias


def largest(p: Tensor) -> float:
    """The share of the images in the largest cluster."""
    return torch.bincount(p.argmax(1), minlength=CLUSTERS).max().item() / len(p)


def test_the_local_loss_moves_out_of_one_cluster() -> None:
    assert largest(learn(*one_cluster(), 0)) == 1.0
    recovered = learn(*one_cluster(), 300)
    assert len(recovered.argmax(1).unique()) == CLUSTERS
    assert largest(recovered) < 0.3
    assert largest(learn(*one_cluster(), 300, adjustment=0.0)) == 1.0, "it is the adjustment that does it"


def test_the_local_loss_moves_out_of_even_predictions() -> None:
    even = random_head(1e-3)
    assert learn(*even, 0).max() < 0.102
    recovered = learn(*random_head(1e-3), 300)
    assert recovered.max(1).values.mean() > 0.6
    assert len(recovered.argmax(1).unique()) == CLUSTERS
    without = learn(*random_head(1e-3), 300, temperature=1.0)
    assert without.max(1).values.mean() < 0.2, "it is the sharpening that does it"
