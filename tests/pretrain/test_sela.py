"""SeLa's loss, schedule and labels against slow versions; its steps by hand; label transfer."""

import inspect
import itertools
import json
import math
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from runs import usl
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor
from training import digits, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.keys import derive_seed
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import Weak
from usl_lightning.evaluation.features import FeatureReport, Features
from usl_lightning.evaluation.knn import knn_accuracy
from usl_lightning.pretrain.sela import (
    Schedule,
    SeLa,
    first_labels,
    label_entropy,
    read_self_labels,
    reassignment_steps,
    renumbered,
    self_label_loss,
    sinkhorn_labels,
)
from usl_lightning.vectors.kmeans import kmeans

# Pure functions -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 1000))
def test_loss_is_the_mean_over_images_and_heads(clusters: list[int], b: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, sum(clusters), generator=generator, dtype=torch.float64)
    labels = torch.stack([torch.randint(k, (b,), generator=generator) for k in clusters])
    total, start = 0.0, 0
    for h, k in enumerate(clusters):
        for i in range(b):
            scores = logits[i, start : start + k].tolist()
            total += math.log(sum(math.exp(s) for s in scores)) - scores[labels[h, i]]
        start += k
    loss = self_label_loss(logits, labels, clusters)
    assert loss.item() == pytest.approx(total / (b * len(clusters)), rel=1e-9, abs=1e-12)


def test_loss_of_half_precision_is_computed_in_single() -> None:
    logits = torch.randn(16, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(16)[None] % 30
    loss = self_label_loss(logits, labels, [30])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels[0]))


@given(st.integers(1, 200), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 2**40))
def test_first_labels_are_balanced_and_random(count: int, clusters: list[int], seed: int) -> None:
    labels = first_labels(count, clusters, seed)
    for own, k in zip(labels, clusters, strict=True):
        sizes = torch.bincount(own, minlength=k)
        assert len(sizes) == k
        assert int(sizes.max() - sizes.min()) <= 1
    assert torch.equal(labels, first_labels(count, clusters, seed))


def test_first_labels_differ_between_heads_and_seeds() -> None:
    labels = first_labels(1000, [10, 10], 0)
    assert (labels[0] == labels[1]).double().mean() < 0.2
    assert (labels[0] == first_labels(1000, [10], 1)[0]).double().mean() < 0.2


@given(st.integers(1, 400), st.integers(0, 60), st.sampled_from(["log", "quadratic", "linear"]))
def test_schedules_have_as_many_steps_as_asked_for(max_steps: int, count: int, schedule: Schedule) -> None:
    steps = reassignment_steps(max_steps, count, schedule)
    assert len(steps) == min(count, max_steps)
    assert sorted(set(steps)) == list(steps)
    assert not steps or (steps[0] == 0 and steps[-1] < max_steps)


def test_schedules_are_what_they_are_called() -> None:
    n, m = 1_000_000, 50
    log, quadratic, linear = (
        np.diff(reassignment_steps(n, m, s)).astype(float)
        for s in ("log", "quadratic", "linear")  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(linear, n / m)
    np.testing.assert_allclose(np.diff(quadratic), 2 * n / m**2, atol=2)
    np.testing.assert_allclose(log[1:] / log[:-1], m ** (1 / m), rtol=0.01)
    assert reassignment_steps(100, 1, "log") == (0,)
    assert reassignment_steps(16, 4, "quadratic") == (0, 1, 4, 9)


def test_the_default_schedule_is_the_published_codes() -> None:
    """Its times in images are `(epochs + 1.01)·N·linspace(0, 1, nopts)²` in a run of epochs + 1 epochs."""
    epochs, images, batch, nopts = 99, 1000, 10, 41
    times = ((epochs + 1.01) * images * np.linspace(0, 1, nopts) ** 2).tolist()
    due, published = list(times), []
    for step in range((epochs + 1) * images // batch):
        if due and step * batch >= due[0]:
            due.pop(0)
            published.append(step)
    schedule = inspect.signature(SeLa).parameters["schedule"].default
    ours = reassignment_steps((epochs + 1) * images // batch, len(published), schedule)
    assert len(published) == nopts - 1
    np.testing.assert_allclose(ours, published, atol=2)
    for other in ("log", "linear"):
        assert np.abs(np.subtract(reassignment_steps(10_000, len(published), other), published)).max() > 1000


def test_label_entropy_in_closed_form() -> None:
    classes = torch.arange(60) % 3
    assert label_entropy(classes + 2, classes) == 0, "labels 0 and 1 are not used and do not count"
    assert label_entropy(torch.arange(60) // 30, classes) == pytest.approx(math.log(3))
    half_pure = torch.where(torch.arange(60) < 30, classes, 7)
    assert label_entropy(half_pure, classes) == pytest.approx(math.log(3) / 4), "three pure labels and a mixed one"


# The module -----------------------------------------------------------------------------------------------

IMAGE = ImageSpec(1, 8, 8, (0.3,), (0.2,), count=40)


def make(data: ImageData | None = None, backbone: str = "small_w16", **options: Any) -> SeLa:
    options = {"heads": 2, "clusters": [6, 9], "power": 10.0, "tolerance": 0.01, "reassignments": 3, **options}
    return SeLa(
        IMAGE if data is None else data.spec, Weak(flip=False), Optimization(lr=0.1), backbone=backbone, **options
    )


def small(data: ImageData) -> SeLa:
    return make(data, knn_k=5)


def test_heads_are_computed_at_once_behind_the_hidden_layers() -> None:
    model = make(hidden_dims=[20, 12])
    assert [m.out_features for m in model.hidden if isinstance(m, torch.nn.Linear)] == [20, 12]
    assert (model.head.in_features, model.head.out_features) == (12, 15)
    assert make(clusters=7, heads=3).clusters == [7, 7, 7]


def test_labels_and_position_are_in_the_state() -> None:
    state = make().state_dict()
    assert state["labels"].shape == (2, 40)
    assert state["reassigned"] == 0


def test_a_step_is_the_loss_of_one_view_under_the_current_labels(tmp_path: Path) -> None:
    """At step 0 of a run that keeps its first labels."""
    model: list[SeLa] = []

    def kept(data: ImageData) -> SeLa:
        model.append(make(data, "small_nf", reassignments=0))
        return model[-1]

    torch.manual_seed(0)
    data = digits()
    fresh = make(data, "small_nf")
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    labels = first_labels(1437, [6, 9], data.seed)[:, batch.indices]
    logits = fresh.head(fresh.encoder(fresh.view(batch.images, batch.key.fold("view"))))
    expected = (F.cross_entropy(logits[:, :6], labels[0]) + F.cross_entropy(logits[:, 6:], labels[1])) / 2
    checkpoint = train(kept, digits, tmp_path, 3)
    first = next(row for row in (tmp_path / "metrics.csv").read_text().splitlines() if ",loss," in row)
    assert float(first.split(",")[2]) == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(checkpoint["state_dict"]["labels"], first_labels(1437, [6, 9], data.seed))


def test_a_reassignment_balances_the_predictions_of_all_images(tmp_path: Path) -> None:
    """Step 0, by hand: one view of every image, the untrained network in evaluation mode, Sinkhorn for each head."""
    torch.manual_seed(0)
    data = digits()
    fresh = make(data, hidden_dims=[20]).eval()
    data.setup("fit")
    with torch.no_grad():
        logits = torch.cat(
            [
                fresh.head(fresh.hidden(fresh.encoder(fresh.view(b.images, b.key.fold("reassignment", 0)))))
                for b in data.whole_set()
            ]
        )
    expected = torch.stack([sinkhorn_labels(own, power=10, tolerance=0.01) for own in logits.split([6, 9], 1)])
    state = train(lambda data: make(data, hidden_dims=[20], reassignments=1), digits, tmp_path, 2)["state_dict"]
    assert torch.equal(state["labels"], expected)
    assert state["reassigned"] == 1
    truth = open_source("digits", "train").labels
    nmi = np.mean([normalized_mutual_info_score(truth, own) for own in expected])
    rows = [row.split(",") for row in (tmp_path / "metrics.csv").read_text().splitlines() if ",self_label_" in row]
    assert [(step, name) for step, name, _ in rows] == [("0", "self_label_nmi"), ("0", "self_label_entropy")]
    assert float(rows[0][2]) == pytest.approx(nmi, rel=1e-6)
    assert 0 < float(rows[1][2]) < math.log(10)


def test_clusters_in_place_of_balanced_labels_by_hand(tmp_path: Path) -> None:
    """Step 0: k-means of what the heads are applied to, each head's from a start of its own, then renumbered."""
    torch.manual_seed(0)
    data = digits()
    fresh = make(data, hidden_dims=[20]).eval()
    data.setup("fit")
    with torch.no_grad():
        features = torch.cat(
            [fresh.hidden(fresh.encoder(fresh.view(b.images, b.key.fold("reassignment", 0)))) for b in data.whole_set()]
        )
    options: dict[str, Any] = {"hidden_dims": [20], "reassignments": 1, "labelling": "kmeans"}
    state = train(lambda data: make(data, **options), digits, tmp_path, 2)["state_dict"]
    for head, (own, before) in enumerate(zip(state["labels"], first_labels(1437, [6, 9], data.seed), strict=True)):
        seed = derive_seed(data.seed, "clusters", 0, head)
        clusters, _ = kmeans(features, int(before.max()) + 1, seed=seed, iterations=20)
        assert torch.equal(own, renumbered(clusters, before, int(before.max()) + 1))
        sizes = torch.bincount(own)
        assert sizes.max() > 1.5 * sizes.min(), "nothing balances them"


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 1000))
def test_renumbered_groups_are_the_best_of_all_numberings(count: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, before = torch.randint(count, (2, n), generator=generator)
    made = renumbered(labels, before, count)
    assert len({*zip(labels.tolist(), made.tolist(), strict=True)}) == len(labels.unique()) == len(made.unique())
    kept = [int((torch.tensor(order)[labels] == before).sum()) for order in itertools.permutations(range(count))]
    assert int((made == before).sum()) == max(kept)


def test_reassignments_come_when_they_are_due_and_once_a_step_under_accumulation(tmp_path: Path) -> None:
    train(small, digits, tmp_path, 9, accumulate_grad_batches=2)
    rows = [row.split(",") for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    steps = [int(step) for step, name, _ in rows if name == "self_label_nmi"]
    assert steps == list(reassignment_steps(9, 3, "log"))


@pytest.mark.parametrize("eval_batch_size", [100, 1437])
def test_labels_do_not_depend_on_the_batches_of_the_pass(tmp_path: Path, eval_batch_size: int) -> None:
    def other() -> ImageData:
        return ImageData("digits", batch_size=32, seed=3, eval_batch_size=eval_batch_size)

    states = [train(small, how, tmp_path / name, 2)["state_dict"] for how, name in ((digits, "a"), (other, "b"))]
    assert (states[0]["labels"] == states[1]["labels"]).double().mean() > 0.998


def test_no_true_label_is_learned_from(tmp_path: Path) -> None:
    """The same labels and weights from images whose true labels are wrong; only the reported agreement falls."""
    truth = open_source("digits", "train")
    reported = []
    states = []
    for name, labels in (("true", truth.labels), ("wrong", truth.labels.roll(7)), ("none", truth.labels * 0 - 1)):

        def data(labels: Tensor = labels) -> ImageData:
            made = digits()
            made.train_source.labels = labels
            return made

        states.append(train(small, data, tmp_path / name, 3)["state_dict"])
        rows = (tmp_path / name / "metrics.csv").read_text().splitlines()
        reported.append([float(row.split(",")[2]) for row in rows if ",self_label_nmi," in row])
    for other in states[1:]:
        for key, value in states[0].items():
            assert torch.equal(value, other[key]), key
    assert reported[2] == [], "nothing is known to compare with"
    assert all(a > 2 * b for a, b in zip(*reported[:2], strict=True))


def test_turns_are_told_beside_the_labels_by_hand() -> None:
    """The labels of the images as they are, and the turn of each of the four."""
    net = SeLa(
        by_hand.IMAGE, Weak(), Optimization(), heads=2, clusters=[6, 9], rotation_weight=0.5, backbone="small_w16"
    )
    assert net.rotation is not None
    own = torch.stack([torch.arange(by_hand.IMAGES) % 6, torch.arange(by_hand.IMAGES) // 5])
    net.labels.copy_(own)

    def slow(batch: Batch, step: int) -> Tensor:
        key = batch.key.fold("view")
        views = [net.view(torch.rot90(batch.images, turn, (2, 3)), key.fold(turn)) for turn in range(4)]
        features = net.encoder(torch.cat(views))
        labelled, turns = net.head(features[:8]), net.rotation(features)  # type: ignore[misc]
        first = [F.cross_entropy(row[:6], own[0, i]) for row, i in zip(labelled, batch.indices, strict=True)]
        second = [F.cross_entropy(row[6:], own[1, i]) for row, i in zip(labelled, batch.indices, strict=True)]
        told = [turns[8 * turn + i].logsumexp(0) - turns[8 * turn + i, turn] for turn in range(4) for i in range(8)]
        return torch.stack(first + second).mean() + 0.5 * torch.stack(told).mean()

    by_hand.assert_steps_are(net, slow)


# Label transfer -------------------------------------------------------------------------------------------


def test_labels_can_be_handed_to_another_network_that_keeps_them(tmp_path: Path) -> None:
    source = make(clusters=[6, 9])
    source.labels = torch.stack([torch.arange(1437) % 6, torch.arange(1437) % 9])
    source.write_outputs(tmp_path)
    path = tmp_path / "self_labels.npy"
    np.testing.assert_array_equal(np.load(path), source.labels.numpy())
    state = train(lambda data: make(data, labels_file=str(path)), digits, tmp_path / "run", 4)["state_dict"]
    assert torch.equal(state["labels"], source.labels)
    assert state["reassigned"] == 0


def test_the_labels_of_one_head_can_be_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "self_labels.npy"
    np.save(path, np.stack([np.arange(40) % 6, np.arange(40) % 9]))
    assert torch.equal(read_self_labels(str(path), [9], 40, head=1), torch.arange(40)[None] % 9)
    with pytest.raises(UslError, match=r"model\.labels_head: 2 of .*, which holds \[2, 40\]; expected one"):
        read_self_labels(str(path), [9], 40, head=2)
    with pytest.raises(UslError, match=r"holds \[1, 40\] .*; expected \[2, 40\]"):
        read_self_labels(str(path), [6, 9], 40, head=1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "is not there"),
        (
            np.zeros((2, 1000), int),
            r"holds \[2, 1000\] torch.int64; expected \[2, 1437\] integers from 0 to below 6, 9",
        ),
        (np.zeros((2, 1437)), r"holds \[2, 1437\] torch.float64; expected"),
        (np.full((2, 1437), 6), "holds 6 to 6; expected"),
        (np.full((2, 1437), -1), "holds -1 to -1; expected"),
    ],
)
def test_a_wrong_labels_file_is_refused_in_a_line(tmp_path: Path, labels: np.ndarray | None, message: str) -> None:
    path = tmp_path / "self_labels.npy"
    if labels is not None:
        np.save(path, labels)
    with pytest.raises(UslError, match=f"model.labels_file: {path} {message}") as error:
        train(lambda data: make(data, labels_file=str(path)), digits, tmp_path / "run", 1)
    assert "\n" not in str(error.value)


def test_more_clusters_than_images_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UslError, match=r"model.clusters: 1438 labels for 1437 images; use at most 1437"):
        train(lambda data: make(data, clusters=[6, 1438]), digits, tmp_path, 1)


def test_heads_and_clusters_must_fit() -> None:
    with pytest.raises(UslError, match=r"model.clusters: .* expected a number, or one for each head"):
        make(heads=3, clusters=[4, 5])


def test_heads_and_hidden_layers_are_measured_on_test_images() -> None:
    """As loops over the images have it; without hidden layers there is nothing more to say of them."""
    data = digits()
    model = make(data, hidden_dims=[20], knn_k=5)
    model.measured = tuple(
        Features(model.encoder.eval()(source.read(torch.arange(len(source)))).detach(), source.labels)
        for source in (data.train_source, data.source("test"))
    )
    report = FeatureReport()
    model.add_figures(report, data)
    hidden = [Features(model.hidden.eval()(part.features), part.labels) for part in model.measured]
    assert report.metrics["knn_fc_accuracy"] == knn_accuracy(*hidden[0], *hidden[1], k=5, num_classes=10)
    logits = model.head(hidden[1].features)
    for name, figure in (
        ("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score), ("ami", adjusted_mutual_info_score)
    ):  # fmt: skip
        each = [figure(hidden[1].labels, logits[:, part].argmax(1)) for part in (slice(0, 6), slice(6, 15))]
        assert report.metrics[f"head_{name}"] == pytest.approx(sum(each) / 2)
    assert {f"probe_layer{number}_accuracy" for number in (1, 2, 3)} <= report.metrics.keys()
    bare = make(data)
    bare.measured, report = model.measured, FeatureReport()
    bare.add_figures(report, data)
    assert "knn_fc_accuracy" not in report.metrics
    assert "head_ami" in report.metrics


# Training -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_are_learned(tmp_path: Path) -> None:
    usl(tmp_path, "fit", "--config", "digits_sela.yaml").done()
    run = tmp_path / "runs" / "digits_sela"
    assert json.loads((run / "result.json").read_text())["knn_accuracy"] >= 0.95
    nmi = [float(row.split(",")[2]) for row in (run / "metrics.csv").read_text().splitlines() if "label_nmi" in row]
    assert nmi[-1] > 2 * nmi[0]
    assert np.load(run / "outputs" / "self_labels.npy").shape == (4, 1437)
