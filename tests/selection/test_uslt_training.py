"""USL-T's step by hand; its heads; nearly empty clusters; what is handed on."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training import train

from usl_lightning.base.configs import find_config
from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, PairBatch
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import Weak
from usl_lightning.evaluation.clusters import cluster_metrics
from usl_lightning.features.neighbor_data import NeighborData
from usl_lightning.models.cluster_heads import ClusterHeads, Reassignment, load_heads, reassign, update_sizes
from usl_lightning.models.encoder import init_encoder, load_encoder
from usl_lightning.selection.uslt import USLTTraining, global_loss, local_loss
from usl_lightning.stage.words import StageCommand
from usl_lightning.vectors.neighbors import knn

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"), count=60)


def uslt(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[USLTTraining, dict[str, Any]]:
    """A small model of four clusters whose predictions differ, and what it logs."""
    torch.manual_seed(0)
    options = {"clusters": 4, "backbone": "small_nf", "threshold": 0.3, "local_weight": 2.0, **options}
    model = USLTTraining(GREY, Weak(), Optimization(), **options)
    with torch.no_grad():
        for layer in model.heads.layers:
            layer.weight.normal_(0, 3)  # type: ignore[operator, union-attr]
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    return model, logged


def pairs(n: int) -> PairBatch:
    generator = torch.Generator().manual_seed(n)
    key = Key.of(0, slots=torch.arange(n))
    images, neighbors = torch.randint(0, 256, (2, n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    unknown = torch.full((n,), -1)
    return PairBatch(
        Batch(images, unknown, torch.arange(n), key), Batch(neighbors, unknown, torch.arange(n), key.fold("neighbor"))
    )


# The step ------------------------------------------------------------------------------------------------


def test_the_step_is_equation_15_summed_over_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = uslt(monkeypatch)
    batch = pairs(12)
    loss = model.training_step(batch, 0)

    def logits(views: Tensor, head: int) -> Tensor:
        return model.heads.layers[head](model.encoder(views))

    anchor = model.view(batch.anchor.images, batch.anchor.key.fold("view"))
    neighbor = model.view(batch.neighbor.images, batch.neighbor.key.fold("view"))
    total, even = torch.zeros(()), torch.full((4,), 0.25)
    for head in range(3):
        x, y, z = (logits(views, head) for views in (anchor, neighbor, batch.anchor.images))
        local, mean = local_loss(x, y, even, adjustment=5.0, temperature=0.25, momentum=0.5)
        total = total + global_loss(x, z, threshold=0.3) + 2.0 * local
        torch.testing.assert_close(model.mean_prob[head], mean)
    torch.testing.assert_close(loss, total)
    assert logged["global_loss"] + 2 * logged["local_loss"] == pytest.approx(loss.item())
    assert logged["global_loss"] > 0
    loss.backward()
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    total.backward()
    for own, other in zip(gradient, [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_each_loss_counts_while_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local one for its steps, the global one from its start (appendix 6.9.2)."""
    found = []
    for step in range(4):
        model, logged = uslt(monkeypatch, local_steps=3, global_after=1)
        model._trainer = SimpleNamespace(global_step=step)  # type: ignore[assignment]
        loss = model.training_step(pairs(12), 0).item()
        parts = {"global": float(logged["global_loss"]), "local": 2 * float(logged["local_loss"])}
        parts["both"] = sum(parts.values())
        found.append([name for name, value in parts.items() if loss == pytest.approx(value, rel=1e-5)])
    assert found == [["local"], ["both"], ["both"], ["global"]]
    with pytest.raises(UslError, match="local_steps=1 and global_after=2: between them there is nothing to learn"):
        uslt(monkeypatch, local_steps=1, global_after=2)


def test_heads_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another second head changes neither the average nor the gradient of the others."""
    results = []
    for scale in (1.0, -2.0):
        model, _ = uslt(monkeypatch)
        with torch.no_grad():
            model.heads.layers[1].weight.mul_(scale)  # type: ignore[operator, union-attr]
        model.training_step(pairs(12), 0).backward()
        results.append((model.mean_prob, [layer.weight.grad for layer in model.heads.layers]))
    (mean, gradients), (other_mean, other_gradients) = results
    for head in (0, 2):
        assert torch.equal(mean[head], other_mean[head])
        assert torch.equal(gradients[head], other_gradients[head])
    assert not torch.equal(mean[1], other_mean[1])
    assert not torch.equal(gradients[1], other_gradients[1])


@pytest.mark.parametrize(("train_mode", "frozen", "moved"), [(True, False, 3), (False, False, 1), (True, True, 0)])
def test_which_passes_move_the_batch_norm_statistics(
    monkeypatch: pytest.MonkeyPatch, train_mode: bool, frozen: bool, moved: int
) -> None:
    model, _ = uslt(monkeypatch, backbone="small_w16", train_mode_targets=train_mode, frozen=frozen)
    model.train()
    loss = model.training_step(pairs(8), 0)
    norm = next(m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.num_batches_tracked == moved
    assert model.encoder.training != frozen
    loss.backward()
    assert all((p.grad is None) == frozen for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.heads.parameters())


def test_the_report_is_of_the_first_heads_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = uslt(monkeypatch)
    images, labels = pairs(40).anchor.images, torch.arange(40) % 3
    model.eval()
    with torch.no_grad():
        for rows in torch.arange(40).chunk(3):
            model.validation_step(Batch(images[rows], labels[rows], rows, Key.of(0, slots=rows)), 0)
        model.on_validation_epoch_end()
        clusters = model.heads.layers[0](model.encoder(images)).argmax(1)
    assert logged == cluster_metrics(clusters, labels, num_clusters=4)
    assert not model._assigned


def test_without_labels_sizes_alone_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = uslt(monkeypatch)
    with torch.no_grad():
        model.validation_step(pairs(9).anchor, 0)
        model.on_validation_epoch_end()
    assert logged.keys() == {"clusters", "largest", "smallest"}


# The heads -----------------------------------------------------------------------------------------------


def test_cosine_heads_are_scaled_cosines_in_single_precision() -> None:
    torch.manual_seed(0)
    heads = ClusterHeads(6, 5, 2, cosine_scale=40.0)
    x, centroids = torch.randn(7, 6), torch.randn(2, 5, 6)
    heads.start_from(centroids)
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(x)
    assert logits.shape == (7, 2, 5)
    for head in range(2):
        expected = 40 * torch.cosine_similarity(x[:, None], centroids[head], dim=2)
        torch.testing.assert_close(logits[:, head], expected, rtol=1e-5, atol=1e-4)
    assert heads(centroids[1])[:, 1].argmax(1).tolist() == list(range(5)), "a sample is its own centroid"
    assert all(layer.bias is None for layer in heads.layers)


@pytest.mark.parametrize("scale", [None, 40.0])
@pytest.mark.parametrize(("kind", "computed"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_heads_of_any_precision_take_features_of_the_same(
    kind: torch.dtype, computed: torch.dtype, scale: float | None
) -> None:
    heads = ClusterHeads(6, 5, 2, cosine_scale=scale).to(kind)
    assert heads(torch.randn(7, 6, dtype=kind)).dtype == computed


@given(st.integers(1, 30), st.integers(2, 5), st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=40)
def test_sizes_are_the_loops(b: int, c: int, momentum: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(0, c, (b,), generator=generator)
    counts = torch.rand(b, generator=generator) < 0.5
    sizes = 100 * torch.rand(c, generator=generator)
    new = update_sizes(sizes, clusters, counts, images=500, momentum=momentum)
    counted = [int(k) for k, passes in zip(clusters, counts, strict=True) if passes]
    for k in range(c):
        share = 500 * counted.count(k) / len(counted) if counted else 0.0
        expected = momentum * float(sizes[k]) + (1 - momentum) * share if counted else float(sizes[k])
        assert float(new[k]) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_nearly_empty_clusters_become_halves_of_the_largest() -> None:
    """By hand: 7 < 10 meets 500 > 90, 8 < 10 meets 95 > 90; 20 is not nearly empty."""
    layer = nn.Linear(3, 6)
    sizes = torch.tensor([95.0, 7.0, 500.0, 8.0, 20.0, 30.0])
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    reassign(layer, sizes, noise, Reassignment(smallest=10, largest=90, perturbation=0.1))
    assert sizes.tolist() == [47.5, 250.0, 250.0, 47.5, 20.0, 30.0]
    for pair, (small, large) in enumerate(((1, 2), (3, 0))):
        shift = 0.1 * weight[large].square().mean().sqrt() * noise[pair]
        torch.testing.assert_close(layer.weight[small], weight[large] + shift)
        torch.testing.assert_close(layer.weight[large], weight[large] - shift)
        assert layer.bias[small] == bias[large]
    assert torch.equal(layer.weight[4:], weight[4:])
    assert torch.equal(layer.bias[[0, 2, 4, 5]], bias[[0, 2, 4, 5]])


@pytest.mark.parametrize("sizes", [[5.0, 90.0, 50.0], [10.0, 500.0, 50.0], [50.0, 50.0, 50.0]])
def test_nothing_moves_unless_one_is_too_small_and_one_too_large(sizes: list[float]) -> None:
    layer, given_sizes = nn.Linear(3, 3, bias=False), torch.tensor(sizes)
    weight = layer.weight.detach().clone()
    reassign(layer, given_sizes, torch.ones(1, 3), Reassignment(smallest=10, largest=90))
    assert torch.equal(layer.weight, weight)
    assert given_sizes.tolist() == sizes


def test_when_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the fourth step at every second; and never with the same noise twice."""
    model, _ = uslt(monkeypatch, reassignment=Reassignment(smallest=1, largest=20, after=4, every=2), cosine_scale=9.0)
    trainer = SimpleNamespace(global_step=0, datamodule=SimpleNamespace(seed=1))
    monkeypatch.setattr(USLTTraining, "trainer", trainer)
    optimizer, moved, found = SimpleNamespace(step=lambda closure: None), [], []
    layer, start = model.heads.layers[0], model.heads.layers[0].weight.detach().clone()
    for step in range(8):
        trainer.global_step = step
        model.sizes.copy_(torch.tensor([0.0, 15.0, 15.0, 30.0]).expand(3, 4))
        with torch.no_grad():
            layer.weight.copy_(start)  # type: ignore[operator, union-attr]
        model.optimizer_step(0, step, optimizer)
        if not torch.equal(start, layer.weight):  # type: ignore[arg-type]
            moved.append(step + 1)
            found.append(layer.weight.detach().clone())  # type: ignore[operator, union-attr]
    assert moved == [6, 8]
    assert not torch.equal(*found)


# Training ------------------------------------------------------------------------------------------------


def table() -> str:
    """The file of 20 neighbours by the pixels of the training digits."""
    x = open_source("digits", "train").read(torch.arange(1437)).flatten(1).float()
    path = Path(tempfile.mkdtemp()) / "neighbors.npy"
    np.save(path, knn(x, 21)[1].numpy())
    return str(path)


def neighbor_digits() -> NeighborData:
    """The training digits, 32 a step, each with a neighbour."""
    return NeighborData(table(), batch_size=32, dataset="digits", seed=3)


MOVES = Reassignment(smallest=100, largest=200, after=1, every=2)


def small(data: ImageData) -> USLTTraining:
    return USLTTraining(data.spec, Weak(), Optimization("adam", 1e-3), 10, backbone="small_w16", threshold=0.3)


def frozen(data: ImageData) -> USLTTraining:
    optimizer = Optimization("sgd", 1e-2)
    return USLTTraining(
        data.spec, Weak(), optimizer, 10, backbone="small_nf", adjustment=2.5, temperature=0.5, threshold=0.0,
        reweight=False, reduction="batch", cosine_scale=40.0, frozen=True, reassignment=MOVES,
    )  # fmt: skip


def test_cosine_heads_start_on_random_images_and_a_frozen_encoder_stays(tmp_path: Path) -> None:
    """After a step of rate 0 each centroid is still the feature of an image; heads have different ones."""

    def still(data: ImageData) -> USLTTraining:
        model = frozen(data)
        model.optimization, model.reassignment = Optimization("sgd", 0.0, weight_decay=0.0), None
        return model

    state = train(still, neighbor_digits, tmp_path, 1)["state_dict"]
    encoder = load_encoder(tmp_path / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        features = encoder(open_source("digits", "train").read(torch.arange(1437)))
    found = []
    for head in range(3):
        distance, image = (state[f"heads.layers.{head}.weight"][:, None] - features).square().sum(2).min(1)
        assert distance.max() < 1e-10
        assert len(image.unique()) == 10
        found.append(tuple(image.tolist()))
    assert len(set(found)) == 3
    torch.manual_seed(0)
    fresh = frozen(neighbor_digits()).encoder
    assert all(torch.equal(state[f"encoder.{name}"], value) for name, value in fresh.state_dict().items())


def test_what_is_handed_on(tmp_path: Path) -> None:
    """The encoder can start another stage, and the heads are those of the model."""
    state = train(small, neighbor_digits, tmp_path, 2)["state_dict"]
    path = tmp_path / "checkpoints" / "last.ckpt"
    other = small(neighbor_digits()).encoder
    init_encoder(other, path)
    assert all(torch.equal(state[f"encoder.{name}"], value) for name, value in other.state_dict().items())
    heads = load_heads(path)
    assert (len(heads), heads.clusters, heads.cosine_scale) == (3, 10, None)
    assert torch.equal(heads.layers[2].weight, state["heads.layers.2.weight"])


def test_the_neighbours_of_its_monitor_can_be_told(tmp_path: Path) -> None:
    model = USLTTraining(GREY, Weak(), Optimization(), 4, backbone="small_nf", knn_k=3)
    assert (model.knn_k, USLTTraining(GREY, Weak(), Optimization(), 4, backbone="small_nf").knn_k) == (3, 200)
    with pytest.raises(UslError, match="knn_k: 0 is out of range; expected 1 or more"):
        USLTTraining(GREY, Weak(), Optimization(), 4, backbone="small_nf", knn_k=0)
    for dataset in ("digits", "fashion_mnist"):
        flat = StageCommand("fit", [find_config(f"{dataset}_uslt.yaml")], {"model.knn_k": "7"}).flat()
        assert flat["model.knn_k"] == 7
        own = StageCommand("fit", [find_config(f"{dataset}_uslt.yaml")]).flat()
        assert own["model.knn_k"] == StageCommand("fit", [find_config(f"{dataset}_simclr.yaml")]).flat()["model.knn_k"]


def test_more_clusters_than_images_are_refused(tmp_path: Path) -> None:
    def model(data: ImageData) -> USLTTraining:
        return USLTTraining(data.spec, Weak(), Optimization(), 1438, backbone="small_w16")

    with pytest.raises(UslError, match=r"model\.clusters: 1438 clusters of 1437 images; expected .* 2 to 1437"):
        train(model, neighbor_digits, tmp_path, 1)
