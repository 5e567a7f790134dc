"""InfoNCE against another library and a loop; queue, key encoder and shuffle-BN against slow references."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from runs import usl
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.pretrain.moco import MoCo, info_nce

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 9))
TEMPERATURES = st.floats(0.05, 2.0)


def vectors(n: int, d: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Queries, keys and a queue of unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    q, keys, queue = (torch.randn(rows, d, generator=generator, dtype=dtype) for rows in (n, n, k))
    return q.requires_grad_(), keys.requires_grad_(), F.normalize(queue, dim=1)


def slow_info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, term by term."""

    def similarity(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    total = 0.0
    for query, key in zip(q.tolist(), k.tolist(), strict=True):
        positive = math.exp(similarity(query, key) / temperature)
        negatives = sum(math.exp(similarity(query, other) / temperature) for other in queue.tolist())
        total -= math.log(positive / (positive + negatives))
    return total / len(q)


@given(SHAPES, TEMPERATURES, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_is_the_papers_equation(shape: tuple[int, int, int], temperature: float, seed: int) -> None:
    tensors = vectors(*shape, seed)
    expected = pytest.approx(slow_info_nce(*tensors, temperature), rel=1e-9)
    assert info_nce(*tensors, temperature=temperature).item() == expected


@pytest.mark.parametrize(("n", "d", "k"), [(1, 3, 2), (16, 8, 64), (33, 64, 500)])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_values_and_gradients_are_lightlys(n: int, d: int, k: int, temperature: float) -> None:
    q, keys, queue = vectors(n, d, k, dtype=torch.float32)
    q2, keys2, _ = vectors(n, d, k, dtype=torch.float32)
    theirs = NTXentLoss(temperature, memory_bank_size=(k, d))
    theirs.memory_bank.bank = queue.clone()
    loss, other = info_nce(q, keys, queue, temperature=temperature), theirs(q2, keys2)
    loss.backward()
    other.backward()
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q.grad, q2.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(keys.grad, keys2.grad, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    q, keys, queue = vectors(4, 3, 5)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, queue, temperature=0.5), (q, keys))


@given(SHAPES, st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_lengths_and_orders_do_not_matter(shape: tuple[int, int, int], scale: float, seed: int) -> None:
    q, keys, queue = (x.detach() for x in vectors(*shape, seed))
    loss = info_nce(q, keys, queue, temperature=0.5)
    torch.testing.assert_close(info_nce(q * scale, keys, queue, temperature=0.5), loss)
    torch.testing.assert_close(info_nce(q, keys * scale, queue.flip(0), temperature=0.5), loss)
    torch.testing.assert_close(info_nce(q.flip(0), keys.flip(0), queue, temperature=0.5), loss)


def test_closed_forms() -> None:
    one = torch.ones(4, 3)
    assert info_nce(one, one, one[:1].expand(7, 3), temperature=0.3).item() == pytest.approx(math.log(8)), "collapsed"
    eye = torch.eye(9)
    perfect = math.log(1 + 5 * math.exp(-1 / 0.2))
    assert info_nce(eye[:4], eye[:4], eye[4:], temperature=0.2).item() == pytest.approx(perfect), "orthogonal"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_single(dtype: torch.dtype) -> None:
    q, keys, queue = (x.detach().to(dtype) for x in vectors(8, 16, 32, dtype=torch.float32))
    single = info_nce(q.float(), keys.float(), queue.float(), temperature=0.01)  # e^100 overflows half precision
    assert torch.equal(info_nce(q, keys, queue.float(), temperature=0.01), single)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(q, keys, queue.float(), temperature=0.01), single)


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"), 100)


def moco(
    backbone: str = "small_nf", *, size: int = 6, processes: int = 1, accumulate: int = 1, groups: int | None = 3,
    queue: int = 18, init_from: str | None = None,
) -> MoCo:  # fmt: skip
    """A small model attached to a pretended trainer with global batches of `size`."""
    torch.manual_seed(0)
    model = MoCo(
        GREY, Weak(), Optimization(), backbone=backbone, queue_size=queue, momentum=0.9, shuffle_groups=groups,
        hidden_dim=16, projection_dim=8, init_from=init_from, knn_k=3,
    )  # fmt: skip
    model._trainer = SimpleNamespace(  # type: ignore[assignment]
        datamodule=SimpleNamespace(batch_size=size), world_size=processes, accumulate_grad_batches=accumulate,
        log_every_n_steps=1, global_step=0, is_global_zero=True,
    )  # fmt: skip
    model.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    return model


def batch(n: int, step: int = 0) -> Batch:
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(step), dtype=torch.uint8)
    return Batch(images, torch.full((n,), -1), torch.arange(n), Key.of(0, step, slots=torch.arange(n)))


def stir(model: MoCo, step: int) -> None:
    """Change the weights that are trained, as an optimizer would."""
    generator = torch.Generator().manual_seed(1000 + step)
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.projector.parameters()]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def slow_keys(model: MoCo, images: Batch) -> list[Tensor]:
    """The key of each image, alone, by the key encoder as it stands."""
    views = model.view(images.images, images.key.fold("key"))
    with torch.no_grad():
        return [F.normalize(model.key_encoder.module(view[None]), dim=1)[0] for view in views]


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_the_queue_holds_the_last_keys(groups: int | None) -> None:
    """Through two rounds of the ring; the key encoder is moved before it makes the keys."""
    model = moco(groups=groups)
    newest = list(model.queue.clone())
    for step in range(7):
        stir(model, step)
        images = batch(6, step)
        before = model.queue.clone()
        loss = model.training_step(images, step)
        keys = slow_keys(model, images)
        queries = model.projector(model.encoder(model.view(images.images, images.key.fold("query"))))
        assert loss.item() == pytest.approx(slow_info_nce(queries, torch.stack(keys), before, 0.2), rel=1e-5)
        newest = (newest + keys)[-18:]
        end = int(model.queue_end)
        assert end == (step + 1) * 6 % 18
        torch.testing.assert_close(model.queue.roll(-end, 0), torch.stack(newest), rtol=1e-5, atol=1e-6)


def test_the_key_encoder_is_the_closed_form_average() -> None:
    model, t = moco(), 6
    query = nn.Sequential(model.encoder, model.projector)
    history = [[p.detach().clone() for p in query.parameters()]]
    for step in range(t):
        stir(model, step)
        history.append([p.detach().clone() for p in query.parameters()])
        model.training_step(batch(6, step), step)
    weights = [0.9**t] + [0.1 * 0.9 ** (t - i) for i in range(1, t + 1)]
    assert sum(weights) == pytest.approx(1)
    for number, own in enumerate(model.key_encoder.parameters()):
        expected = sum(w * past[number] for w, past in zip(weights, history, strict=True))
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_the_key_encoder_moves_once_an_optimizer_step() -> None:
    model = moco(accumulate=3)
    stir(model, 0)
    states = []
    for micro in range(4):
        model.training_step(batch(6, micro), 3 + micro)
        states.append(torch.cat([p.flatten() for p in model.key_encoder.parameters()]))
    assert [torch.equal(states[0], state) for state in states] == [True, True, True, False]


def test_batch_norm_sees_groups_and_keys_are_shuffled() -> None:
    """Queries in groups of their order, keys in groups of a keyed order, each put back in its place."""
    model = moco("small_w16", size=8, groups=2, queue=16)
    images = batch(8)
    order = torch.argsort(images.key.fold("shuffle").bits(1)[:, 0])
    assert {*order[:4].tolist()} not in ({0, 1, 2, 3}, {4, 5, 6, 7}), "a shuffle that mixes the groups"
    before = model.queue.clone()
    query = nn.Sequential(model.encoder, model.projector)
    views = model.view(images.images, images.key.fold("query"))
    queries = torch.cat([query(views[:4]), query(views[4:])]).detach()
    views = model.view(images.images, images.key.fold("key"))
    keys = torch.empty(8, 8)
    with torch.no_grad():
        for slots in (order[:4], order[4:]):
            keys[slots] = F.normalize(model.key_encoder.module(views[slots]), dim=1)
    loss = model.training_step(images, 0)
    torch.testing.assert_close(model.queue[:8], keys, rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(slow_info_nce(queries, keys, before, 0.2), rel=1e-4)


def test_the_shuffle_is_another_at_every_step() -> None:
    orders = [torch.argsort(batch(64, step).key.fold("shuffle").bits(1)[:, 0]) for step in range(4)]
    assert all(torch.equal(order.sort().values, torch.arange(64)) for order in orders)
    for i in range(4):
        fixed = (orders[i] == torch.arange(64)).sum() + sum((orders[i] == orders[j]).sum() for j in range(i))
        assert fixed < 16


def test_gradients_reach_the_queries_alone() -> None:
    model = moco("small_w16", size=8, groups=2, queue=16)
    model.training_step(batch(8), 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.projector.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.key_encoder.parameters())
    assert not model.queue.requires_grad
    assert {"queue", "queue_end"} < set(model.state_dict())
    assert not any(isinstance(m, nn.BatchNorm1d) for m in model.projector)


def test_an_earlier_encoder_starts_both(tmp_path: Path) -> None:
    earlier = moco()
    stir(earlier, 0)
    checkpoint = {"state_dict": earlier.state_dict()}
    earlier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    model = moco(init_from=str(tmp_path / "earlier.ckpt"))
    model.setup("fit")
    for network in (model.encoder, model.key_encoder.module[0]):
        for name, value in network.state_dict().items():
            assert torch.equal(value, earlier.encoder.state_dict()[name])
    for own, key in zip(model.projector.parameters(), model.key_encoder.module[1].parameters(), strict=True):
        assert torch.equal(own, key)


# Refusals ------------------------------------------------------------------------------------------------


def refusal(build: Callable[[], MoCo]) -> str:
    model = build()
    with pytest.raises(UslError) as error:
        model.setup("fit")
    model.setup("test")
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("size", "queue", "use"), [(6, 20, "18 or 24"), (256, 1000, "768 or 1024"), (8, 5, "8"), (8, 15, "8 or 16")]
)
def test_a_queue_of_no_whole_number_of_batches_is_refused(size: int, queue: int, use: str) -> None:
    message = refusal(lambda: moco(size=size, queue=queue, groups=None))
    assert message.startswith("model.queue_size: ")
    assert f"{queue} keys" in message
    assert message.endswith(f"; use {use}")
    for number in use.split(" or "):
        moco(size=size, queue=int(number), groups=None).setup("fit")


@given(st.integers(1, 4), st.integers(2, 12), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_groups_are_equal_and_on_one_process_each(processes: int, share: int, groups: int) -> None:
    size = processes * share
    possible = [g for g in range(1, size) if g % processes == 0 and size % g == 0 and size // g >= 2]

    def build(number: int) -> MoCo:
        return moco(size=size, queue=size, processes=processes, groups=number)

    if groups in possible:
        build(groups).setup("fit")
    else:
        message = refusal(lambda: build(groups))
        assert message.startswith("model.shuffle_groups: ")
        use = int(message.split("; use ")[1].split(",")[0])
        assert use in possible
        assert abs(use - groups) == min(abs(g - groups) for g in possible)


@pytest.mark.parametrize(("size", "processes", "use"), [(1, 1, 2), (4, 4, 8)])
def test_a_single_image_is_refused(size: int, processes: int, use: int) -> None:
    message = refusal(lambda: moco(size=size, queue=size, processes=processes, groups=None))
    assert message.startswith(f"data.batch_size: {size} ")
    assert message.endswith(f"use {use} or more")


# Training ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_are_learned(tmp_path: Path) -> None:
    usl(tmp_path, "fit", "--config", "digits_moco.yaml").done()
    metrics = json.loads((tmp_path / "runs" / "digits_moco" / "result.json").read_text())
    assert metrics["knn_accuracy"] >= 0.95
    assert metrics["feature_std"] > 0.5 / math.sqrt(512)
