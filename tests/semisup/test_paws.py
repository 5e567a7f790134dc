"""PAWS's loss against a slow version of it, over many steps; its supports, and what is wrong with them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from methods import model_options, options, usl
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.sampling import BalancedSampler
from usl_lightning.data.views import Recipe, SmallGreyView
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.semisup.paws import PAWS, mean_entropy, smoothed_labels, soft_neighbours, swapped_targets

C = 3
GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))
TAU, T, SMOOTHING = 0.2, 0.5, 0.1


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(**options: Any) -> PAWS:
    small = Recipe([RandomResizedCrop(6, (0.3, 0.7), flip=False)])
    settings = {"small_views": 2, "temperature": TAU, "sharpening": T, "hidden_dim": 20, "projection_dim": 12}
    made = PAWS(GREY, SmallGreyView(), Optimization(), small, backbone="small_w16", **{**settings, **options})
    made.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    return made.double()


# The classifier of supports ------------------------------------------------------------------------------


def slow_predictions(queries: list[Tensor], supports: list[Tensor], labels: list[int]) -> list[list[Tensor]]:
    """Probabilities, query by query, support by support."""
    found = []
    for query in queries:
        likeness = [torch.exp(query @ s / (query.norm() * s.norm() * TAU)) for s in supports]
        row = [torch.zeros((), dtype=torch.float64) for _ in range(C)]
        for own, label in zip(likeness, labels, strict=True):
            for c in range(C):
                truth = SMOOTHING / C + (1 - SMOOTHING if c == label else 0)
                row[c] = row[c] + own / sum(likeness) * truth
        found.append(row)
    return found


def slow_sharpened(row: list[Tensor]) -> list[Tensor]:
    powers = [p ** (1 / T) for p in row]
    return [p / sum(powers) for p in powers]


def slow_loss(paws: PAWS, batch: SemiBatch) -> Tensor:
    """Of the supports' views, two large views and the small ones, each embedded in the passes of the step."""
    labelled, unlabelled = batch
    n = len(unlabelled)
    views = [paws.view(labelled.images, labelled.key.fold("view", i)) for i in range(paws.support_views)]
    large = [paws.view(unlabelled.images, unlabelled.key.fold("view", i)) for i in range(2)]
    assert paws.small_view is not None
    small = [paws.small_view(unlabelled.images, unlabelled.key.fold("small view", i)) for i in range(paws.small_views)]
    features = paws.model.encoder(torch.cat([*views, *large]))
    z = paws.projector(torch.cat([features, paws.model.encoder(torch.cat(small))]))
    m = len(labelled) * paws.support_views
    truth = labelled.labels.tolist() * paws.support_views
    anchors = paws.predictor(z)
    predicted = slow_predictions(list(anchors[m:]), list(anchors[:m]), truth)
    sharp = [slow_sharpened(row) for row in slow_predictions(list(z[m : m + 2 * n]), list(z[:m]), truth)]
    sharp = [[p.detach() for p in row] for row in sharp]
    both = [[(a + b) / 2 for a, b in zip(sharp[i], sharp[n + i], strict=True)] for i in range(n)]
    targets = [*sharp[n:], *sharp[:n], *[row for _ in small for row in both]]
    losses = [
        -sum(t * p.log() for t, p in zip(target, row, strict=True) if t >= 1e-4)
        for target, row in zip(targets, predicted, strict=True)
    ]
    mean = [sum(column) / len(predicted) for column in zip(*map(slow_sharpened, predicted), strict=True)]
    entropy = -sum(p * p.log() for p in mean)
    logits = paws.model.head(features.detach()).log_softmax(1)
    said = smoothed_labels(torch.tensor(truth), C, smoothing=SMOOTHING).tolist()
    for a, b in zip(sharp[:n], sharp[n:], strict=True):
        kept = [(float(x) * (x >= 1e-4) + float(y) * (y >= 1e-4)) / 2 for x, y in zip(a, b, strict=True)]
        said.append(kept)
    said += said[m:]
    head = -sum(s * logit for row, own in zip(said, logits, strict=True) for s, logit in zip(row, own, strict=True))
    return sum(losses) / len(losses) - paws.entropy_weight * entropy + head / len(said)  # type: ignore[no-any-return]


def batch_of(step: int) -> SemiBatch:
    made = []
    for name, labels in (("l", [0, 1, 2, 0, 1, 2]), ("u", [-1] * 5)):
        pixels = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=torch.Generator().manual_seed(step))
        slots = torch.arange(len(labels))
        made.append(Batch(pixels.to(torch.uint8), torch.tensor(labels), slots, Key.of(name, step, slots=slots)))
    return SemiBatch(*made)


@pytest.mark.parametrize("options", [{}, {"support_views": 2, "prediction_head": True, "entropy_weight": 0.6}])
def test_thirty_steps_are_the_loops(options: dict[str, Any]) -> None:
    """Values and gradients, while it is trained."""
    paws = model(**options)
    parameters = [p for p in paws.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for step in range(30):
        before = {name: buffer.clone() for name, buffer in paws.named_buffers()}
        expected = slow_loss(paws, batch_of(step))
        gradients = torch.autograd.grad(expected, parameters)
        for name, buffer in paws.named_buffers():
            buffer.copy_(before[name])
        loss = paws.training_step(batch_of(step), step)
        torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-9)
        found = torch.autograd.grad(loss, parameters)
        for parameter, own, other in zip(parameters, found, gradients, strict=True):
            assert float((own - other).norm()) <= 1e-6 * float(other.norm()) + 1e-10
            parameter.grad = own
        optimizer.step()


def test_it_is_scikit_learns_weighted_neighbours() -> None:
    """All supports are neighbours, weighted by exp(cosine / τ)."""
    z, supports, labels = draw(0, 20, 5), draw(1, 9, 5), torch.arange(9) % C
    unit, own = (F.normalize(rows, dim=1).numpy() for rows in (supports, z))
    other = KNeighborsClassifier(9, weights=lambda d: np.exp((1 - d**2 / 2) / TAU)).fit(unit, labels.numpy())
    found = soft_neighbours(z, supports, F.one_hot(labels), temperature=TAU)
    np.testing.assert_allclose(found.exp(), other.predict_proba(own), rtol=1e-9)


def test_a_class_without_a_support_has_no_infinite_loss() -> None:
    z = draw(0, 4, 5).requires_grad_()
    log_probs = soft_neighbours(z, draw(1, 3, 5), F.one_hot(torch.tensor([0, 1, 0]), C), temperature=TAU)
    assert bool(log_probs.isfinite().all())
    mean_entropy(log_probs, temperature=T).backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_targets_and_entropy_by_hand() -> None:
    log_probs = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()  # an image, two views
    targets = swapped_targets(log_probs, 3, temperature=0.5)
    sharp = 0.64 / 0.68
    expected = [[0.5, 0.5], [sharp, 1 - sharp], [(0.5 + sharp) / 2, (1.5 - sharp) / 2]]
    torch.testing.assert_close(targets, torch.tensor(expected))
    mean = (sharp + 0.5) / 2
    by_hand = -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)
    assert mean_entropy(log_probs, temperature=0.5).item() == pytest.approx(by_hand)
    sure = torch.tensor([[0.99, 0.01], [0.99, 0.01]]).log()
    assert swapped_targets(sure, 2, temperature=0.25)[:, 1].tolist() == [0, 0]


# Supports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_class", "classes"), [(2, None), (7, None), (3, 2)])
def test_supports_are_balanced_whatever_the_labels(per_class: int, classes: int | None) -> None:
    """Of classes of 1, 2 and 9 images; those of a step differ from those of another."""
    labels = torch.tensor([4, 7, 7, *[2] * 9])[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    sampler, seen, met = BalancedSampler(labels, per_class, classes, 5, "labelled"), set(), set()
    for step in range(40):
        positions = sampler(step)
        assert len(positions) == sampler.batch_size == per_class * (classes or 3)
        assert torch.equal(positions, BalancedSampler(labels, per_class, classes, 5, "labelled")(step))
        counts = torch.bincount(labels[positions], minlength=8)
        assert sorted(counts[counts > 0].tolist()) == [per_class] * (classes or 3)
        for label in counts.nonzero()[:, 0].tolist():
            own = torch.bincount(positions, minlength=12)[labels == label]
            assert own.max() - own.min() <= 1
        seen.add(tuple(positions.tolist()))
        met |= set(positions.tolist())
    assert len(seen) > 20
    assert met == set(range(12))


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """PAWS on digits for two steps; the labels are of nine classes, one each but the first."""
    from usl_lightning.data.images.opening import open_source

    labels = open_source("digits", "train").labels.tolist()
    chosen = [labels.index(digit) for digit in range(9)]
    chosen.append(labels.index(0, chosen[0] + 1))
    (tmp_path / "labels.json").write_text(json.dumps(chosen))
    words = ["fit", "--config", "digits_paws.yaml", f"--data.labels={tmp_path / 'labels.json'}"]
    return [*words, "--run_dir", str(tmp_path / "run"), *options(trainer__max_steps=2, data__batch_size=16)]


def test_few_labels_are_repeated_and_said_once(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Also that a class has none."""
    usl(*words)
    said = [record.getMessage() for record in caplog.records if "data.labelled_per_class" in record.getMessage()]
    assert said == [
        "data.labelled_per_class: 2, but 8 of the 9 labelled classes have fewer labels (the rarest 1); their images "
        "are repeated in a step"
    ]
    assert [r for r in caplog.records if "no label of 1 of the 10 classes (9)" in r.getMessage()]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (options(data__classes_per_step=10), "data.classes_per_step: 10, but 9 classes have a label"),
        (options(data__classes_per_step=3, data__labelled_per_class=None), "data.classes_per_step: expected with"),
        (model_options({"small_view.init_args.steps": [{
            "class_path": "usl_lightning.data.views.steps.RandomResizedCrop", "init_args": {"size": 9}}]}),
         "model.small_view: its crops have 9×9 pixels, those of model.view 8×8"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    words: list[str], more: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        usl(*words, *more)
    assert [each for each in capsys.readouterr().err.splitlines() if each.startswith(f"usl: {line}")]
