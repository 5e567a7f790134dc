"""MixMatch's pieces against loops over samples and scipy's Beta distribution; its step by hand."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from usl_lightning.compute.optim import Optimization, ramp_up
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.models import mixing
from usl_lightning.models.mixing import mix, mix_weights, partners_of
from usl_lightning.semisup.mixmatch import MixMatch, guessed_labels, mixmatch_losses

SHAPES = st.tuples(st.integers(1, 8), st.integers(2, 6))


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(x - top) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def key(n: int, name: str = "x") -> Key:
    return Key.of(0, name, slots=torch.arange(n))


# Guesses -------------------------------------------------------------------------------------------------


def slow_guess(logits: Tensor, temperature: float) -> list[list[float]]:
    """Equations 6 and 7 image by image."""
    guesses = []
    for views in logits.transpose(0, 1).tolist():
        predictions = [softmax(view) for view in views]
        mean = [sum(column) / len(predictions) for column in zip(*predictions, strict=True)]
        powers = [p ** (1 / temperature) for p in mean]
        guesses.append([p / sum(powers) for p in powers])
    return guesses


@given(st.integers(1, 4), SHAPES, st.sampled_from([0.1, 0.5, 1.0, 2.0]), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_guesses_are_the_loops(views: int, shape: tuple[int, int], temperature: float, seed: int) -> None:
    logits = random(views, *shape, seed=seed).requires_grad_()
    guess = guessed_labels(logits, temperature=temperature)
    torch.testing.assert_close(guess, torch.tensor(slow_guess(logits, temperature), dtype=torch.float64))
    assert not guess.requires_grad


def test_impossible_classes_stay_impossible() -> None:
    guess = guessed_labels(torch.tensor([[[0.0, -1e4, 0.0]], [[0.0, -1e4, 0.0]]]), temperature=0.5)
    assert guess.tolist() == [[0.5, 0.0, 0.5]]


# Mixing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.4, 0.5, 0.75, 1.0, 8.0])
def test_weights_are_the_larger_part_of_a_beta(alpha: float) -> None:
    weights = mix_weights(key(20_000, f"{alpha}"), alpha=alpha).double().numpy()
    assert weights.min() >= 0.5
    assert weights.max() <= 1
    beta = stats.beta(alpha, alpha)
    distance = stats.kstest(weights, lambda x: beta.cdf(x) - beta.cdf(1 - x)).statistic
    assert distance < 0.0115, "the 1% point of Kolmogorov's distribution"


def test_weights_belong_to_the_slots() -> None:
    weights = mix_weights(key(10), alpha=0.75)
    assert torch.equal(mix_weights(key(10)[torch.tensor([7, 2])], alpha=0.75), weights[[7, 2]])
    assert len(weights.unique()) == 10


def test_a_mix_is_a_weighted_mean_of_each_sample() -> None:
    own, partners, weights = random(3, 2, 4, 4, seed=1), random(3, 2, 4, 4, seed=2), torch.tensor([0.5, 0.75, 1.0])
    mixed = mix(own, partners, weights)
    for i in range(3):
        torch.testing.assert_close(mixed[i], float(weights[i]) * own[i] + (1 - float(weights[i])) * partners[i])
    assert torch.equal(mixed[2], own[2])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_partners_are_all_rows_in_another_order(sizes: list[int]) -> None:
    everything = torch.arange(sum(sizes))
    groups = list(everything.split(sizes))
    partners = partners_of(groups, [key(size, str(i)) for i, size in enumerate(sizes)])
    assert torch.equal(partners.sort().values, everything)


def test_partners_come_from_all_groups_and_change_with_the_step() -> None:
    groups = list(torch.arange(64).split([16, 24, 24]))
    orders = []
    for step in range(2):
        keys = [Key.of(0, step, slots=torch.arange(len(group))) for group in groups]
        orders.append(partners_of(groups, keys))
        labelled_partners = orders[-1][:16]
        assert (labelled_partners >= 16).any()
        assert (labelled_partners < 16).any()
        assert torch.equal(partners_of([g.view(-1, 1) for g in groups], keys)[:, 0], orders[-1]), (
            "labels go with images"
        )
    assert not torch.equal(*orders)


def test_processes_share_the_order_of_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, keys = list(torch.arange(24).split([8, 16])), [key(8), key(16, "u")]
    whole = partners_of(groups, keys).split([8, 16])
    for rank in range(2):
        own = [slice(0, 4), slice(0, 8)] if rank == 0 else [slice(4, 8), slice(8, 16)]
        parts = [group[rows] for group, rows in zip(groups, own, strict=True)]
        full = {int(part[0]): group for part, group in zip(parts, groups, strict=True)}
        monkeypatch.setattr(mixing, "gather", lambda part, full=full: full[int(part[0])])
        partners = partners_of(parts, [k[rows] for k, rows in zip(keys, own, strict=True)])
        expected = torch.cat([group[rows] for group, rows in zip(whole, own, strict=True)])
        assert torch.equal(partners, expected)


# Losses --------------------------------------------------------------------------------------------------


def slow_losses(x: Tensor, labels: Tensor, u: Tensor, guesses: Tensor) -> tuple[float, float]:
    """Equations 3 and 4 sample by sample."""
    supervised = unsupervised = 0.0
    for row, label in zip(x.tolist(), labels.tolist(), strict=True):
        supervised -= sum(p * math.log(q) for p, q in zip(label, softmax(row), strict=True)) / len(x)
    for row, guess in zip(u.tolist(), guesses.tolist(), strict=True):
        unsupervised += sum((p - q) ** 2 for p, q in zip(guess, softmax(row), strict=True)) / (len(u) * len(guess))
    return supervised, unsupervised


@given(st.integers(1, 6), SHAPES, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_losses_are_the_loops(labelled: int, shape: tuple[int, int], seed: int) -> None:
    x, u = random(labelled, shape[1], seed=seed), random(*shape, seed=seed + 1)
    labels, guesses = random(labelled, shape[1], seed=seed + 2).softmax(1), random(*shape, seed=seed + 3).softmax(1)
    losses = mixmatch_losses(x, labels, u, guesses)
    for ours, slow in zip(losses, slow_losses(x, labels, u, guesses), strict=True):
        assert ours.item() == pytest.approx(slow, abs=1e-9)


def test_gradients_are_the_closed_forms() -> None:
    x, u, labels, guesses = (random(4, 3, seed=i) for i in range(4))
    labels, guesses = labels.softmax(1), guesses.softmax(1)
    x.requires_grad_(), u.requires_grad_()
    supervised, unsupervised = mixmatch_losses(x, labels, u, guesses)
    (supervised + 3 * unsupervised).backward()
    q, p = x.detach().softmax(1), u.detach().softmax(1)
    torch.testing.assert_close(x.grad, (q - labels) / 4)
    error = 2 * (p - guesses) / (4 * 3)
    torch.testing.assert_close(u.grad, 3 * p * (error - (error * p).sum(1, keepdim=True)))


def test_ramp() -> None:
    assert [ramp_up(step, 4) for step in (0, 1, 3, 4, 5, 1000)] == [0, 0.25, 0.75, 1, 1, 1]
    assert ramp_up(0, 0) == 1


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def build(
    monkeypatch: pytest.MonkeyPatch, backbone: str = "small_nf", **options: Any
) -> tuple[MixMatch, dict[str, Any]]:
    """A model that stands at step 3 of a ramp of 12, and what it logs."""
    torch.manual_seed(0)
    options = {"unlabelled_weight": 20.0, "ramp_steps": 12, "views": 3, **options}
    model = MixMatch(GREY, Weak(), Optimization(), backbone=backbone, **options)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(global_step=3, log_every_n_steps=50))
    return model, logged


def batch(n: int, labels: list[int], name: str = "x") -> Batch:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.arange(n), key(n, name))


BATCHES = SemiBatch(batch(4, [0, 1, 2, 1]), batch(6, [-1] * 6, "u"))


@pytest.mark.parametrize("step", range(32))
def test_a_step_is_algorithm_1(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ramp that ends at the twelfth."""
    model, logged = build(monkeypatch)
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(global_step=step, log_every_n_steps=50))
    labelled, unlabelled = batch(4, [step % 3, 1, 2, 1], f"x{step}"), batch(6, [-1] * 6, f"u{step}")
    loss = model.training_step(SemiBatch(labelled, unlabelled), 0)

    views = [model.weak(unlabelled.images, unlabelled.key.fold("weak", k)) for k in range(3)]
    predictions = torch.stack([torch.cat([model.model(image[None]) for image in view]) for view in views])
    guess = torch.tensor(slow_guess(predictions.double(), 0.5), dtype=torch.float64)
    images = torch.cat([model.weak(labelled.images, labelled.key.fold("weak")), *views]).double()
    targets = torch.cat([torch.eye(3, dtype=torch.float64)[labelled.labels], guess, guess, guess])
    keys = [labelled.key.fold("mix"), *(unlabelled.key.fold("mix", k) for k in range(3))]
    order = partners_of(list(torch.arange(22).split([4, 6, 6, 6])), keys)
    weights = torch.cat([mix_weights(k, alpha=0.75) for k in keys]).tolist()
    mixed = [
        (w * images[i] + (1 - w) * images[j], w * targets[i] + (1 - w) * targets[j])
        for i, (j, w) in enumerate(zip(order.tolist(), weights, strict=True))
    ]
    outputs = torch.cat([model.model(image[None].float()) for image, _ in mixed]).double()
    labels = torch.stack([label for _, label in mixed])
    supervised, unsupervised = slow_losses(outputs[:4], labels[:4], outputs[4:], labels[4:])
    assert logged["supervised_loss"].item() == pytest.approx(supervised, rel=1e-5)
    assert logged["unsupervised_loss"].item() == pytest.approx(unsupervised, rel=1e-4)
    assert loss.item() == pytest.approx(supervised + 20 * min(1, step / 12) * unsupervised, rel=1e-5)


def test_no_gradient_flows_through_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build(monkeypatch)
    passes: list[tuple[int, bool]] = []
    model.model.encoder.register_forward_hook(lambda _m, x, out: passes.append((len(x[0]), out.requires_grad)))
    model.training_step(BATCHES, 0).backward()
    assert passes == [(6, False)] * 3 + [(22, True)], "a pass for each view, one for all mixed images"


def test_each_view_is_guessed_apart_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm normalises each view by itself, as in the published code: a dark view does not change a bright one."""
    model, _ = build(monkeypatch, "small_w16")
    bright, dark = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8) / 4
    with torch.no_grad():
        apart = torch.stack([copy.deepcopy(model).model(view) for view in (bright, dark)])
        joint = model.model(torch.cat([bright, dark])).view(2, 6, 3)
    guess = model._guess([bright, dark], torch.arange(len(bright)))
    expected = torch.tensor(slow_guess(apart.double(), 0.5), dtype=torch.float64)
    torch.testing.assert_close(guess.double(), expected, atol=1e-5, rtol=0)
    assert (guess - guessed_labels(joint, temperature=0.5)).abs().max() > 0.01


def test_guesses_leave_the_statistics_of_batch_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the mixed images alone, yet the guess is made with those of its batch, view by view."""
    model, _ = build(monkeypatch, "small_w16")
    seen: list[tuple[Tensor, Tensor]] = []
    norm = model.model.encoder.net.stem[1]
    norm.register_forward_hook(lambda m, x, out: seen.append((x[0].detach().clone(), out.detach().clone())))
    model.training_step(BATCHES, 0)
    *views, (second, _) = seen
    assert len(views) == 3
    for _, normalised in views:
        torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    assert not torch.allclose(views[0][0].mean((0, 2, 3)), second.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, 0.1 * second.mean((0, 2, 3)))
    assert int(norm.num_batches_tracked) == 1
