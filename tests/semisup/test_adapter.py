"""Adapters: the update against loops, what stays frozen, what begins as what, and what a checkpoint hands on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training import few_labels, train

from usl_lightning import Classifier
from usl_lightning.base.errors import UslError
from usl_lightning.cli import main
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.keys import Key
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import Encoder, encoder_entry, load_encoder
from usl_lightning.models.heads import load_classifier
from usl_lightning.semisup.adapter import Adapter, LowRank, low_rank_weight, updatable

LEAST = 0.14
"""Probability that some guesses of a random network reach and others do not."""

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), tuple("0123456789"))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A checkpoint whose network has running statistics of its own."""
    torch.manual_seed(1)
    encoder = Encoder("small_w16", GREY)
    with torch.no_grad():
        for _ in range(20):
            encoder(images(64))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "encoder": encoder_entry(encoder, online="encoder.")}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def images(n: int = 5) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


def adapter(path: Path | None, **options: Any) -> Adapter:
    torch.manual_seed(2)
    given = {"init_from": None if path is None else str(path), **options}
    return Adapter(GREY, Weak(flip=False), FixMatchStrong(flip=False), Optimization(lr=0.05), "small_w16", **given)


def moved(model: Adapter) -> Adapter:
    """Updates as after some steps."""
    assert model.low_rank is not None
    with torch.no_grad():
        for b in model.low_rank.b:
            b.normal_(std=0.1)
    return model


def batch(n: int = 6) -> SemiBatch:
    def part(count: int, seed: int) -> Batch:
        slots = torch.arange(count)
        labels = torch.full_like(slots, -1) if seed else slots % 10
        return Batch(images(count), labels, slots, Key.of(seed, slots=slots))

    return SemiBatch(part(n, 0), part(n + 1, 1))


# The update ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1), (3, 2, 3, 3)])
def test_an_updated_weight_is_the_papers(shape: tuple[int, ...]) -> None:
    """W + (α/r)·B·A, entry by entry; of a convolution over inputs and places."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.Size(shape[1:]).numel()
    w, a, b = (torch.randn(size, generator=generator, dtype=torch.double) for size in (shape, (2, columns), (3, 2)))
    alpha, r = 6.0, 2
    slow = w.clone().flatten(1)
    for i in range(3):
        for j in range(columns):
            for k in range(r):
                slow[i, j] += alpha / r * b[i, k] * a[k, j]
    torch.testing.assert_close(low_rank_weight(w, a, b, scale=alpha / r), slow.view(shape))


def test_linear_layers_and_convolutions_without_groups_are_updated_the_last_ones() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip
    assert updatable(net) == ["0.weight", "3.weight", "5.weight"]
    assert updatable(net, 0.5) == ["3.weight", "5.weight"]
    assert updatable(net, 0.01) == ["5.weight"]
    assert updatable(nn.Sequential(nn.ReLU())) == []
    update = LowRank(net, updatable(net), rank=3, alpha=6.0)
    assert [tuple(a.shape) for a in update.a] == [(3, 9), (3, 4), (2, 8)]  # not above the rows
    assert update.scales == [2.0, 2.0, 3.0]
    assert all(bool(a.any()) for a in update.a)
    assert not any(bool(b.any()) for b in update.b)


@pytest.mark.parametrize("tuned", ["low_rank", "bottleneck"])
def test_at_first_it_is_the_frozen_network_bit_for_bit(tuned: str) -> None:
    model = adapter(None, tuned=tuned)
    linear = model.model.head[-1] if tuned == "bottleneck" else model.model.head
    with torch.no_grad():
        frozen = linear(model.model.encoder.eval()(images()))
        assert torch.equal(model.updated(images()), frozen)
        assert torch.equal(model.model(images()), frozen)


@pytest.mark.parametrize("rank", [1, 4, 10_000])
def test_a_rank_above_a_layers_size_is_told(rank: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "usl_lightning"):
        model = adapter(None, rank=rank, share=1.0, pretrained=False)
    assert model.low_rank is not None
    weights = [model.model.encoder.net.get_parameter(name).flatten(1).shape for name in model.low_rank.names]
    least = min(min(shape) for shape in weights)
    assert model.lowered == ({"rank": least} if rank > least else {})
    assert (f"rank {least} instead of {rank}" in caplog.text) == (rank > least)


def test_merged_weights_give_the_same_and_the_average_follows() -> None:
    model = moved(adapter(None, share=1.0, ema_decay=0.75))
    assert model.low_rank is not None
    with torch.no_grad():
        before, updated = model.model(images()), model.updated(images())
        assert not torch.allclose(before, updated, rtol=1e-2)
        old = {name: value.clone() for name, value in model.ema.module.named_parameters()}
        model.optimizer_step(0, 0, torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), None)
        assert torch.equal(model.model(images()), updated)
        for name, value in model.model.named_parameters():
            average = model.ema.module.get_parameter(name)
            torch.testing.assert_close(average, 0.75 * old[name] + 0.25 * value)


@pytest.mark.parametrize("tuned", ["low_rank", "bottleneck"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_only_the_adapter_and_the_head_get_gradients(
    tuned: str, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapter(None, tuned=tuned, unlabelled_weight=weight, threshold=0.0)
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    model.eval()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items() if name != "guess_share"}
    model.training_step(batch(), 0).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    kinds = {name.split(".")[0] + "." + name.split(".")[1] for name in trained}
    assert kinds == ({"low_rank.a", "low_rank.b", "model.head"} if tuned == "low_rank" else {"model.head"})
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items()), "statistics moved"


def test_the_loss_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-entropy on weak views, and FixMatch's of the confident guesses, one image at a time."""
    model = moved(adapter(None, unlabelled_weight=0.5, threshold=LEAST))
    assert model.low_rank is not None
    model.low_rank.merge(model.model.encoder.net)
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    labelled, unlabelled = batch()
    loss = model.training_step(SemiBatch(labelled, unlabelled), 0)
    with torch.no_grad():
        views = model.weak(labelled.images, labelled.key.fold("weak"))
        parts = [-model.model(x[None]).log_softmax(1)[0, y] for x, y in zip(views, labelled.labels, strict=True)]
        slow = sum(parts) / len(parts)
        weak = model.weak(unlabelled.images, unlabelled.key.fold("weak"))
        strong = model.strong(unlabelled.images, unlabelled.key.fold("strong"))
        passed = 0
        for one, other in zip(weak, strong, strict=True):
            p = model.model(one[None]).softmax(1)[0]
            if p.max() >= LEAST:
                passed += 1
                slow = slow - 0.5 * model.model(other[None]).log_softmax(1)[0, p.argmax()] / len(weak)
    assert 0 < passed < len(weak)
    assert loss.item() == pytest.approx(float(slow), rel=1e-5)


# A run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuned", ["low_rank", "bottleneck"])
def test_a_run_begins_as_logistic_regression_and_hands_a_network_on(tuned: str, earlier: Path, tmp_path: Path) -> None:
    network = load_encoder(earlier)
    made: list[Adapter] = []

    def make(_: Any) -> Adapter:
        made.append(adapter(earlier, tuned=tuned, rank=3))
        return made[-1]

    checkpoint = train(make, few_labels, tmp_path / "run", 3)
    state, path = checkpoint["state_dict"], tmp_path / "run" / "checkpoints" / "last.ckpt"
    if tuned == "low_rank":
        first = updatable(network.net, 0.5)[0]
        assert torch.equal(state["low_rank.base0"], network.net.get_parameter(first))
        changed = {f"model.encoder.net.{name}" for name in updatable(network.net, 0.5)}
    else:
        changed = set()
    for name, value in network.state_dict().items():
        assert torch.equal(state[f"model.encoder.{name}"], value) == (f"model.encoder.{name}" not in changed), name
    model = made[0].eval()
    assert torch.equal(load_classifier(path)(images()), model.ema.module(images()))
    assert torch.equal(load_encoder(path, "ema")(images()), model.ema.module.get_submodule("encoder")(images()))
    assert torch.equal(load_encoder(path)(images()), model.model.encoder(images()))


def test_the_head_begins_with_what_the_labels_say(earlier: Path, tmp_path: Path) -> None:
    made: list[Adapter] = []

    def make(_: Any) -> Adapter:
        model = adapter(earlier)
        model.optimization = Optimization(lr=0.0)
        made.append(model)
        return model

    data = few_labels()
    train(make, lambda: data, tmp_path / "run", 1)
    rows, labels = (torch.tensor(column) for column in data.index.for_training())
    with torch.no_grad():
        told = made[0].eval().model(data.train_source.read(rows)).argmax(1)
    assert float((told == labels).float().mean()) > 0.9


@pytest.mark.parametrize("config", ["folder_adapter.yaml", "folder_fixmatch.yaml"])
def test_a_published_network_is_trained_and_looks_at_images(config: str, tmp_path: Path) -> None:
    """By the real command; another method trains all of the same network."""
    generator = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "photos" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    source = open_source("folder", "train", dir=str(tmp_path / "photos"))
    few, classes = tuple(source.labels[:8].tolist()), source.classes
    LabelIndex(dataset_id(source), {}, tuple(range(8)), few, classes).write(tmp_path / "labels.json")
    given = {
        "data.dir": tmp_path / "photos", "data.labels": tmp_path / "labels.json", "data.image_size": 64,
        "data.batch_size": 2, "data.unlabelled_ratio": 1, "data.channels": 3, "trainer.max_steps": 1,
        "model.backbone": "tf_efficientnet_lite0", "model.pretrained": "true", "run_dir": tmp_path / "run",
    }  # fmt: skip
    main(["fit", "--config", config, *(f"--{key}={value}" for key, value in given.items())])
    found = Classifier.load(tmp_path / "run").predict(tmp_path / "photos" / "train" / "a")
    network = load_classifier(tmp_path / "run" / "checkpoints" / "last.ckpt")
    seen = open_source("folder", "train", dir=str(tmp_path / "photos"), image_size=64).read(torch.arange(6))
    with torch.no_grad():
        torch.testing.assert_close(found.probabilities, network(seen).softmax(1), atol=1e-4, rtol=1e-3)


def test_a_network_that_has_learned_nothing_is_refused() -> None:
    with pytest.raises(UslError, match=r"model.init_from: expected a checkpoint .* or model.pretrained true"):
        adapter(None).setup("fit")
