"""FlexMatch's thresholds, loss and records against a loop over samples; its step by hand; its state."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training import few_labels, train

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData, SemiSupervisedData
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.guesses import fixmatch_loss, thresholded_loss
from usl_lightning.semisup.flexmatch import (
    FlexMatch,
    adaptive_thresholds,
    confident_labels,
    record_labels_,
)


def slow_thresholds(record: list[int], classes: int, threshold: float, warmup: bool) -> list[float]:
    """Equations 5, 7, 11 and 12 from the label of every image (-1: unused)."""
    counter = Counter(record)
    most = max(counter[c] for c in range(classes))
    if warmup:
        most = max(most, counter[-1])
    betas = [counter[c] / most if most else 0.0 for c in range(classes)]
    return [threshold * beta / (2 - beta) for beta in betas]


def slow_loss(weak: Tensor, strong: Tensor, thresholds: list[float]) -> tuple[float, list[list[float]], list[bool]]:
    """Equation 4 with a threshold for each class: value, gradient with respect to the strong logits, mask."""
    total, gradient, mask = 0.0, [], []
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in (w, s))
        label = p.index(max(p))
        passes = p[label] >= thresholds[label]
        mask.append(passes)
        total -= math.log(q[label]) if passes else 0.0
        gradient.append([(q[c] - (c == label)) / len(weak) if passes else 0.0 for c in range(len(s))])
    return total / len(weak), gradient, mask


def random_logits(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weak, strong = (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return weak.requires_grad_(), strong.requires_grad_()


# Thresholds ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.floats(0, 1), st.booleans())
def test_thresholds_are_the_papers(record: list[int], threshold: float, warmup: bool) -> None:
    counts = torch.tensor([record.count(c) for c in range(5)])
    expected = torch.tensor(slow_thresholds(record, 5, threshold, warmup))
    for unused in (record.count(-1), torch.tensor(record.count(-1))):
        got = adaptive_thresholds(counts, unused, threshold=threshold, warmup=warmup)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    exact = adaptive_thresholds(counts.double(), record.count(-1), threshold=threshold, warmup=warmup)
    torch.testing.assert_close(exact, torch.tensor(slow_thresholds(record, 5, threshold, warmup), dtype=torch.float64))


def test_known_thresholds() -> None:
    counts = torch.tensor([100.0, 50.0, 0.0])
    # β = 1, ½, 0 without unused images; ½, ¼, 0 with 200 of them.
    torch.testing.assert_close(adaptive_thresholds(counts, 10, threshold=0.9), torch.tensor([0.9, 0.3, 0.0]))
    expected = torch.tensor([0.9 / 3, 0.9 / 7, 0.0])
    torch.testing.assert_close(adaptive_thresholds(counts, 200, threshold=0.9), expected)
    without = adaptive_thresholds(counts, 200, threshold=0.9, warmup=False)
    torch.testing.assert_close(without, torch.tensor([0.9, 0.3, 0.0]))


@pytest.mark.parametrize("warmup", [True, False])
def test_nothing_recorded_lets_everything_pass(warmup: bool) -> None:
    for unused in (0, 50):
        assert adaptive_thresholds(torch.zeros(3), unused, threshold=0.9, warmup=warmup).tolist() == [0, 0, 0]


# Loss ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=50)
def test_values_and_gradients_are_the_loops(n: int, classes: int, seed: int) -> None:
    weak, strong = random_logits(n, classes, seed)
    thresholds = torch.rand(classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss, mask = thresholded_loss(weak, strong, thresholds)
    loss.backward()
    value, gradient, passes = slow_loss(weak, strong, thresholds.tolist())
    assert loss.item() == pytest.approx(value, abs=1e-10)
    assert mask.tolist() == passes
    torch.testing.assert_close(strong.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-8, atol=1e-10)
    assert weak.grad is None, "the pseudo-label is a constant"


def test_equal_thresholds_are_fixmatch() -> None:
    weak, strong = random_logits(40, 5, 0)
    loss, mask = thresholded_loss(weak, strong, torch.full((5,), 0.7))
    expected, expected_mask = fixmatch_loss(weak, strong, threshold=0.7)
    assert 0 < int(mask.sum()) < 40
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(loss, expected)


def test_confident_labels_and_the_threshold_itself() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 5.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert confident_labels(logits, threshold=0.5).tolist() == [0, 1, 0]
    assert confident_labels(logits, threshold=0.9).tolist() == [-1, 1, -1]
    assert not confident_labels(logits, threshold=0.5).requires_grad


# Records -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 10_000))
@settings(max_examples=10)
def test_counters_over_200_random_steps(n: int, batch_size: int, seed: int) -> None:
    """Images repeat within a batch wherever it is larger than the set, and by chance."""
    generator = torch.Generator().manual_seed(seed)
    classes, slow = 4, [-1] * n
    record = torch.full((n,), -1, dtype=torch.int32)
    counts = torch.tensor([0] * classes + [n])
    for _ in range(200):
        indices = torch.randint(n, (batch_size,), generator=generator)
        labels = torch.randint(-1, classes, (batch_size,), generator=generator)
        record_labels_(record, counts, indices, labels)
        for i, label in zip(indices.tolist(), labels.tolist(), strict=True):
            slow[i] = label if label >= 0 else slow[i]
        assert record.tolist() == slow
        assert counts.tolist() == [slow.count(c) for c in range(classes)] + [slow.count(-1)]


def test_a_label_stays_until_another_is_confident() -> None:
    record, counts = torch.full((3,), -1, dtype=torch.int32), torch.tensor([0, 0, 3])
    for label, expected in ((1, 1), (-1, 1), (0, 0), (-1, 0)):
        record_labels_(record, counts, torch.tensor([2]), torch.tensor([label]))
        assert record.tolist() == [-1, -1, expected]
    assert counts.tolist() == [1, 0, 2]


# The module ----------------------------------------------------------------------------------------------

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"), count=40)


def flexmatch(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[FlexMatch, dict[str, Any]]:
    """A network without norms whose guesses differ (its head: the three main directions), and what it logs."""
    torch.manual_seed(0)
    options = {"threshold": 0.6, "unlabelled_weight": 3.0, "ema_decay": 0.9, **options}
    model = FlexMatch(GREY, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf", **options)
    model.counts[-1] = 40
    with torch.no_grad():
        features = model.model.encoder(batch(50).images)
        spread = features - features.mean(0)
        model.model.head.weight.copy_(torch.linalg.svd(spread, full_matrices=False).Vh[:3] / 4 / spread.std())
        model.model.head.bias.copy_(-(model.model.head.weight @ features.mean(0)))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    return model, logged


def batch(n: int, labels: list[int] | None = None, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(n + first)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    known = torch.tensor([-1] * n if labels is None else labels)
    return Batch(images, known, torch.arange(first, first + n), Key.of(first, slots=torch.arange(n)))


def test_32_steps_are_algorithm_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds of a step come from the records before it; the fixed threshold decides what is recorded."""
    model, logged = flexmatch(monkeypatch, warmup=False)
    labelled, record = batch(3, [0, 1, 2]), [-1] * 40
    masks, recorded = [], []
    for step in range(32):
        unlabelled = batch(20, first=20 * step)
        if step > 1:  # some images again, of which the network may think otherwise now
            model.model.head.bias.data += torch.tensor([math.sin(step), 0.0, math.cos(step)]) / 4
            again = torch.randperm(40, generator=torch.Generator().manual_seed(step))[:20]
            unlabelled = Batch(unlabelled.images, unlabelled.labels, again, unlabelled.key)
        loss = model.training_step(SemiBatch(labelled, unlabelled), 0)
        x, weak, strong = (
            model.model(view(part.images, part.key.fold(name))).double()
            for view, part, name in (
                (model.weak, labelled, "weak"),
                (model.weak, unlabelled, "weak"),
                (model.strong, unlabelled, "strong"),
            )
        )
        thresholds = slow_thresholds(record, 3, 0.6, warmup=False)
        unsupervised, _, mask = slow_loss(weak, strong, thresholds)
        supervised = F.cross_entropy(x, labelled.labels).item()
        assert loss.item() == pytest.approx(supervised + 3.0 * unsupervised, rel=1e-4)
        assert float(logged["mask_rate"]) == pytest.approx(sum(mask) / 20)
        assert float(logged["lowest_threshold"]) == pytest.approx(min(thresholds))
        assert float(logged["highest_threshold"]) == pytest.approx(max(thresholds))
        for i, p in zip(unlabelled.indices.tolist(), weak.softmax(1).tolist(), strict=True):
            record[i] = p.index(max(p)) if max(p) >= 0.6 else record[i]
        assert model.record.tolist() == record
        assert float(logged["unused"]) == pytest.approx(record.count(-1) / 40)
        masks.append(sum(mask))
        recorded.append(40 - record.count(-1))
    assert masks[0] == 20, "nothing is recorded yet: all pass"
    assert 0 < masks[1] < 20, "some classes are held back"
    assert 0 < recorded[0] < recorded[1] < 40
    assert 30 * 5 < sum(masks[2:]) < 30 * 20
    assert model.counts.tolist() == [record.count(c) for c in (0, 1, 2, -1)]


def test_warm_up_keeps_the_thresholds_low(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = []
    for warmup in (True, False):
        model, logged = flexmatch(monkeypatch, warmup=warmup)
        for first in (0, 20):
            model.training_step(SemiBatch(batch(3, [0, 1, 2]), batch(20, first=first)), 0)
        highest.append(float(logged["highest_threshold"]))
    assert highest[1] == pytest.approx(0.6)
    assert 0 < highest[0] < 0.3


def test_records_are_in_the_checkpoint_and_another_set_can_be_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = flexmatch(monkeypatch)
    model.training_step(SemiBatch(batch(3, [0, 1, 2]), batch(20)), 0)
    state = model.state_dict()
    assert int((state["record"] >= 0).sum()) == int(state["counts"][:-1].sum()) > 0
    other = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"), count=7)
    loaded = FlexMatch(other, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf")
    loaded.on_load_checkpoint({"state_dict": state})
    loaded.load_state_dict(state)
    assert torch.equal(loaded.record, model.record)


# Training ------------------------------------------------------------------------------------------------


def small(data: ImageData) -> FlexMatch:
    return FlexMatch(
        data.spec, Weak(), FixMatchStrong(), Optimization(), backbone="small_w16", threshold=0.2, ema_decay=0.9
    )


def without_labelled() -> SemiSupervisedData:
    """Few labels, whose images are not among the unlabelled ones."""
    data = few_labels()
    data.include_labelled = False
    return data


def test_unused_images_are_those_of_the_unlabelled_set(tmp_path: Path) -> None:
    for make, expected in ((few_labels, 1437), (without_labelled, 1417)):
        state = train(small, make, tmp_path / make.__name__, 2)["state_dict"]
        assert make().unlabelled_count == expected
        assert int(state["counts"].sum()) == expected
        assert 0 < int((state["record"] >= 0).sum()) == expected - int(state["counts"][-1])
        labels = state["record"][state["record"] >= 0]
        assert torch.bincount(labels, minlength=10).tolist() == state["counts"][:-1].tolist()
