"""Folds, calibration, estimate and learning curve, on labels whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from usl_lightning.evaluation.calibration import SPREAD, TEMPERATURES, calibrate, expected_error, reliability, softening
from usl_lightning.evaluation.estimate import (
    accuracy_interval,
    estimate_accuracy,
    nearest_share,
    unseen_mass,
    unseen_share,
)
from usl_lightning.evaluation.folds import known_class, of_held_out, stratified_folds, training_sets
from usl_lightning.evaluation.learning_curve import LearningCurve, fit_learning_curve

# Folds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0] * 7 + [1] * 9 + [2], [0, 1], [0, 0, 0], list(range(12))])
def test_classes_are_spread_evenly_over_folds(labels: list[int]) -> None:
    y = torch.tensor(labels)
    folds = stratified_folds(y, 4, 5, seed=1)
    assert folds.shape == (5, len(labels))
    for fold in folds:
        sizes = torch.bincount(fold)
        assert int(sizes.max() - sizes.min()) <= 1
        assert len(sizes) == min(4, len(labels))
        for label in y.unique():
            numbers = torch.bincount(fold[y == label], minlength=len(sizes))
            assert int(numbers.max() - numbers.min()) <= 1
    assert torch.equal(folds, stratified_folds(y, 4, 5, seed=1))


def test_nobody_is_scored_by_what_has_seen_it() -> None:
    y = torch.arange(10) % 3
    folds = stratified_folds(y, 4, 3)
    train = training_sets(folds)
    assert train.shape == (12, 10)
    scores = train.float()[None, :, :, None].expand(2, -1, -1, 3)  # 1 where the row was learned from
    assert not bool(of_held_out(scores, folds).any())
    assert train.view(3, 4, 10).sum(1).eq(3).all(), "three of four sets have each row"


def test_known_class() -> None:
    train = torch.tensor([[True, False, False, True], [False, False, True, True]])
    assert known_class(torch.tensor([0, 0, 1, 2]), train).tolist() == [
        [True, True, False, True],
        [False, False, True, True],
    ]


# Calibration ---------------------------------------------------------------------------------------------


def drawn(n: int, sharpness: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [n, 4] `sharpness` times those that the labels were drawn by."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_the_temperature_undoes_the_sharpness(sharpness: float) -> None:
    logits, labels = drawn(3000, sharpness)
    folds = stratified_folds(labels, 5, 1)
    found = calibrate(logits[None, None], labels, folds, torch.ones_like(folds, dtype=torch.bool), usual=1.0)
    assert found.temperature == pytest.approx(sharpness, rel=0.15)
    counts = torch.ones(1, 3000, dtype=torch.bool)
    error = expected_error(reliability(found.probabilities, labels, counts))
    assert error is not None
    assert error < 0.04


def test_few_labels_stay_near_the_usual_temperature() -> None:
    logits, labels = drawn(4, 1.0)
    folds = stratified_folds(labels, 4, 1)
    none = torch.zeros_like(folds, dtype=torch.bool)
    nearest = min(TEMPERATURES, key=lambda t: abs(math.log(t / 0.4)))
    assert calibrate(logits[None, None], labels, folds, none, usual=0.4).temperature == nearest


@pytest.mark.parametrize("warmth", [1.0, 1.6])
def test_labels_alone_in_their_class_show_what_is_said_of_classes_without_one(warmth: float) -> None:
    """By loops: the known labels' likelihood, and what is left beside the likeliest class of those alone, weighed."""
    told = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.95, 0.05, 0], [0.4, 0.6, 0], [0.99, 0.01, 0]]).double()
    labels, unseen = torch.tensor([0, 1, 0, 1, 2]), 0.3
    counts = labels.expand(1, 5) < 2
    losses = {}
    for t in (1.0, *(t for t in TEMPERATURES if t > 1)):
        rows = [[p ** (1 / t) / sum(q ** (1 / t) for q in row) for p in row] for row in told.tolist()]
        right = sum(-math.log(row[label]) for row, label in list(zip(rows, labels.tolist(), strict=True))[:4])
        wrong = 4 * unseen / (1 - unseen) * -math.log(1 - max(rows[4]))
        losses[t] = right + wrong + (math.log(t * warmth) / SPREAD) ** 2 / 2
    best = min(losses, key=lambda t: losses[t])
    assert best > 1.2
    assert softening(told[None], labels, counts, unseen, warmth) == best
    assert best < 1.7 or warmth == 1.0
    assert softening(told[None], labels, counts, 0.0) == 1.0
    assert softening(told[None], labels, torch.ones_like(counts), unseen) == 1.0


def test_the_better_setting_is_chosen_and_no_fold_chooses_for_itself() -> None:
    logits, labels = drawn(400, 1.0)
    folds = stratified_folds(labels, 5, 1)
    counts = torch.ones_like(folds, dtype=torch.bool)
    scores = torch.stack([torch.zeros_like(logits), logits])[:, None]
    assert calibrate(scores, labels, folds, counts, usual=1.0).setting == 1
    # A setting that is right in one fold alone, wildly so, and useless elsewhere.
    held = folds[0] == 0
    cheat = torch.zeros(400, 4)
    cheat[held, labels[held]] = 50.0
    found = calibrate(torch.stack([cheat, logits])[:, None], labels, folds, counts, usual=1.0)
    right = found.probabilities[0].argmax(1) == labels
    assert torch.equal(right[held], (logits.argmax(1) == labels)[held])


def test_reliability_counts_what_is_looked_at() -> None:
    probabilities = torch.tensor([[[0.95, 0.05], [0.45, 0.55], [0.3, 0.7]]])
    bins = reliability(probabilities, torch.tensor([0, 0, 1]), torch.tensor([[True, True, False]]))
    assert bins[:, 0].sum() == 2
    assert bins[14].tolist() == pytest.approx([1, 1, 0.95])
    assert bins[8].tolist() == pytest.approx([1, 0, 0.55])
    assert expected_error(bins) == pytest.approx((0.05 + 0.55) / 2)
    assert expected_error(torch.zeros(15, 3)) is None


# Estimate ------------------------------------------------------------------------------------------------


def test_the_interval_is_jeffreys() -> None:
    low, high = accuracy_interval(0.8, 50)
    assert (low, high) == pytest.approx((beta.ppf(0.05, 40.5, 10.5), beta.ppf(0.95, 40.5, 10.5)))
    assert accuracy_interval(1.0, 20)[1] == 1.0
    assert accuracy_interval(0.0, 20)[0] == 0.0
    assert accuracy_interval(1.0, 20)[0] < 0.95


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_calibrated_probabilities_tell_the_accuracy_of_other_images(shift: float) -> None:
    """Those that were labelled may be harder than the rest: 90% intervals hold the truth as a rule."""
    inside, n, m = 0, 4000, 60
    for seed in range(60):
        logits, labels = drawn(n, 1.0, seed)
        confidence, predicted = logits.softmax(1).max(1)
        order = torch.argsort(confidence + shift * torch.rand(n, generator=torch.Generator().manual_seed(seed)))
        rows = order[torch.randperm(n // 2, generator=torch.Generator().manual_seed(seed))[:m]]
        rest = torch.ones(n, dtype=torch.bool)
        rest[rows] = False
        counts = torch.ones(1, m, dtype=torch.bool)
        found = estimate_accuracy(logits[rows].softmax(1)[None], labels[rows], counts, confidence[rest])
        assert found is not None
        truth = float((predicted == labels)[rest].double().mean())
        inside += found.low <= truth <= found.high
    assert inside >= 54


def test_weights_say_which_labels_stand_for_many() -> None:
    """Held-out labels that are off count by what they stand for."""
    probabilities = torch.tensor([[0.5, 0.5]]).repeat(20, 1)[None]
    labels = torch.tensor([0] * 10 + [1] * 10)
    counts, confidences = torch.ones(1, 20, dtype=torch.bool), torch.full((100,), 0.5)
    even = estimate_accuracy(probabilities, labels, counts, confidences)
    share = torch.tensor([0.09] * 10 + [0.01] * 10)
    uneven = estimate_accuracy(probabilities, labels, counts, confidences, share)
    assert even is not None
    assert uneven is not None
    assert even.accuracy == pytest.approx(0.5)
    assert uneven.accuracy == pytest.approx((0.7 * 20 / 1.15**2 + 0.5) / (20 / 1.15**2 + 1))


def test_too_few_to_tell() -> None:
    probabilities, labels = torch.full((1, 12, 2), 0.5), torch.arange(12) % 2
    counts = torch.ones(1, 12, dtype=torch.bool)
    confidences = torch.full((5,), 0.5)
    assert estimate_accuracy(probabilities, labels, counts, confidences) is not None
    counts[:, :4] = False
    assert estimate_accuracy(probabilities, labels, counts, confidences) is None
    assert estimate_accuracy(probabilities, labels, ~counts | counts, confidences[:0]) is None


def test_unseen_classes() -> None:
    assert unseen_share(torch.tensor([0, 0, 1, 2]), 4) == 0.5
    assert unseen_share(torch.tensor([0, 0, 1, 2]), 3) == 0.0
    assert unseen_mass(torch.tensor([0, 0, 1, 2]), 4) == pytest.approx((0.5 * 0.25) ** 0.5)
    assert unseen_mass(torch.tensor([0, 0, 1, 2]), 3) == 0.0
    assert unseen_mass(torch.tensor([0, 0, 2, 2]), 3) == 0.0, "each of them has a fellow"


def test_nearest_share() -> None:
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]])
    assert nearest_share(x, torch.tensor([0, 3])).tolist() == [0.75, 0.25]


def test_what_was_added_has_no_share() -> None:
    angles = torch.tensor([0.0, 0.3, 0.4, 1.5])
    x = torch.stack([angles.cos(), angles.sin()], 1)
    rows, chosen = torch.tensor([0, 2, 3]), torch.tensor([True, False, True])
    assert nearest_share(x, rows).tolist() == [0.25, 0.5, 0.25]
    assert nearest_share(x, rows, chosen).tolist() == [0.75, 0.0, 0.25]
    assert nearest_share(x, rows, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0] * 3
    assert torch.equal(nearest_share(x, rows, torch.ones(3, dtype=torch.bool)), nearest_share(x, rows))


# Learning curve ------------------------------------------------------------------------------------------


def test_a_power_law_is_found() -> None:
    truth = LearningCurve(1.2, 0.4)
    sizes = [32, 48, 58]
    curve = fit_learning_curve(sizes, [truth.error(n) for n in sizes], labels=64)
    assert curve is not None
    assert (curve.scale, curve.exponent) == pytest.approx((1.2, 0.4))
    assert curve.with_more(1 - truth.error(64), 64, 40) == pytest.approx(1 - truth.error(104))
    assert curve.with_more(0.8, 64, 0) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("sizes", "errors", "labels"),
    [
        ([32, 48, 58], [0.3, 0.2, 0.2], 31),  # too few labels
        ([32, 48, 48], [0.3, 0.2, 0.2], 64),  # too few sizes
        ([32, 48, 58], [0.3, 0.2, 0.0], 64),  # no error left
        ([32, 48, 58], [0.2, 0.2, 0.3], 64),  # it does not fall
        ([32, 48, 58], [0.4, 0.05, 0.01], 64),  # nor so fast
    ],
)
def test_where_there_is_no_telling(sizes: list[float], errors: list[float], labels: int) -> None:
    assert fit_learning_curve(sizes, errors, labels=labels) is None


def test_noise_is_weighed() -> None:
    errors = np.array([0.30, 0.26, 0.25])
    curve = fit_learning_curve([100, 200, 240], errors.tolist(), labels=256)
    assert curve is not None
    assert 0.1 < curve.exponent < 0.4
