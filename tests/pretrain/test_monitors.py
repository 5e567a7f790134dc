"""What stage 1 tells while it trains: spread, alignment, uniformity, collapse, and kNN accuracy at a bounded cost."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from training import Stop, digits, train

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import MONITORED, monitored
from usl_lightning.data.views import Weak
from usl_lightning.evaluation.spread import uniformity
from usl_lightning.pretrain.pretrain_module import LOOK_EVERY, PretrainModule
from usl_lightning.pretrain.simclr import SimCLR

EPOCH = 1437 // 32


class Attract(PretrainModule):
    """Views attract each other and nothing holds them apart: SimSiam without its stop-gradient, or BN."""

    def __init__(self, data: ImageData) -> None:
        super().__init__(data.spec, Optimization(lr=0.005), backbone="small_nf", knn_k=5)
        self.view = Weak()
        self.projector = nn.Sequential(nn.Linear(self.encoder.feature_dim, 32), nn.ReLU(), nn.Linear(32, 16))
        # Spread out at first, as trained embeddings are.
        images = data.train_source.read(torch.arange(256))
        with torch.no_grad():
            self.projector[2].bias -= self.projector(self.encoder(images)).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        z1, z2 = (self.projector(self.encoder(self.view(batch.images, batch.key.fold("view", i)))) for i in range(2))
        loss = 1 - F.cosine_similarity(z1, z2).mean()
        self.log_training(z1, z2, loss=loss)
        return loss


def attract(data: ImageData) -> Attract:
    return Attract(data)


def constant(data: ImageData) -> SimCLR:
    """The encoder's output does not depend on the image."""
    model = SimCLR(data.spec, Weak(), Optimization(), backbone="small_nf", hidden_dim=8, projection_dim=8, knn_k=5)
    last = model.encoder.net.stages[-1]
    for layer in (last.conv2, last.shortcut[0]):
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)
        layer.requires_grad_(False)
    return model


def healthy(data: ImageData) -> SimCLR:
    return SimCLR(
        data.spec, Weak(), Optimization(lr=0.1), backbone="small_w16", hidden_dim=16, projection_dim=8, knn_k=5
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def logged(folder: Path, name: str) -> dict[int, float]:
    """Step -> value."""
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {int(step): float(value) for step, metric, value in rows if metric == name}


# Collapse ------------------------------------------------------------------------------------------------


def test_embeddings_that_collapse_are_reported_once_within_the_first_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where Lightning logs at other steps; a resumed run, which knows nothing of the first, says it again."""
    options: dict[str, Any] = {"log_every_n_steps": 7, "val_check_interval": 1000}
    train(attract, digits, tmp_path, 2 * EPOCH, stop=Stop(EPOCH), **options)
    (line,) = warnings(caplog)
    assert line.startswith("features are collapsing: step 30: ")
    assert float(line.split("uniformity ")[1].split(";")[0]) > -0.5
    assert "\n" not in line
    train(attract, digits, tmp_path, 2 * EPOCH, **options)
    assert [line.split(": the")[0] for line in warnings(caplog)[1:]] == ["features are collapsing: step 60"]


def test_a_constant_network_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(constant, digits, tmp_path, LOOK_EVERY, val_check_interval=1000)
    (line,) = warnings(caplog)
    assert "step 30: the embeddings of different images are nearly the same (uniformity 0.00; " in line.replace(
        "-0", "0"
    )


def test_features_that_are_learnt_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(healthy, digits, tmp_path, LOOK_EVERY, val_check_interval=1000)
    assert warnings(caplog) == []


def looked(model: SimCLR, *uniformities: float, step: int = LOOK_EVERY) -> None:
    """What happens after steps with these uniformities."""
    model._trainer = SimpleNamespace(global_step=step, is_global_zero=True)  # type: ignore[assignment]
    for value in uniformities:
        model._uniformity = torch.tensor(value)
        model.on_train_batch_end(None, None, 0)


@pytest.mark.parametrize(("points", "said"), [(1, 1), (2, 1), (3, 0), (10, 0)])
def test_collapsed_is_fewer_than_three_points(points: int, said: int, caplog: pytest.LogCaptureFixture) -> None:
    looked(healthy(digits()), float(uniformity(torch.eye(points).repeat_interleave(3000 // points, 0))))
    assert len(warnings(caplog)) == said


def test_each_fall_and_each_recovery_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    looked(healthy(digits()), -3.8, -1.1, -0.9, -0.2, -1.1, -0.9, -2.0, -2.5, -0.3)
    looked(healthy(digits()), -0.1, step=LOOK_EVERY + 1)  # amid accumulation of the next one
    assert [line.split(": step")[0] for line in warnings(caplog)] == [
        "features are collapsing", "features have spread again", "features are collapsing",
    ]  # fmt: skip


# Batches larger than the data set ------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "said"), [(1437, 0), (1438, 1)])
def test_images_that_are_twice_in_a_batch_are_warned_of(
    batch_size: int, said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(healthy, lambda: ImageData("digits", batch_size=batch_size), tmp_path, 1)
    assert [line.split(":")[1] for line in warnings(caplog)] == [" 1438 places for 1437 images"] * said


# What is logged ------------------------------------------------------------------------------------------


def test_logged_values_are_those_of_the_steps_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(data: ImageData) -> SimCLR:
        model = healthy(data)
        model.projector.register_forward_hook(lambda *call: seen.append(call[-1].detach().clone()))
        return model

    train(watched, digits, tmp_path, 7, log_every_n_steps=3, val_check_interval=1000)
    assert len(seen) == 7
    assert logged(tmp_path, "embedding_std").keys() == {2, 5}
    for step in (2, 5):
        a, b = (F.normalize(z.double(), dim=1) for z in seen[step].chunk(2))
        assert logged(tmp_path, "alignment")[step] == pytest.approx(float((a - b).square().sum(1).mean()), rel=1e-4)
        assert logged(tmp_path, "embedding_std")[step] == pytest.approx(float(a.std(0, correction=0).mean()), rel=1e-4)
        potential = torch.pdist(a).square().mul(-2).exp().mean().log()
        assert logged(tmp_path, "uniformity")[step] == pytest.approx(float(potential), rel=1e-4)


# The kNN monitor's cost ----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=2),
    st.integers(1, 100_000),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_a_look_is_a_small_share_of_what_was_trained_on(sizes: list[int], trained: int, seed: int, world: int) -> None:
    looks = monitored(sizes, trained, seed, processes=world)
    for size, positions in zip(sizes, looks, strict=True):
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert 0 <= int(positions.min()) <= int(positions.max()) < size
        assert len(positions) >= min(size, world)
    assert sum(map(len, looks)) <= max(MONITORED * trained, len(sizes) * world)
    assert all(map(torch.equal, looks, monitored(sizes, trained, seed, processes=world)))


def test_a_look_is_three_quarters_bank_and_drawn_at_random() -> None:
    bank, queries = monitored([60_000, 10_000], 60_000, 0)
    assert (len(bank), len(queries)) == (1800, 600)
    assert float(bank.double().mean()) == pytest.approx(30_000, rel=0.05)
    assert not torch.equal(bank, monitored([60_000, 10_000], 60_000, 1)[0])
    everything = monitored([1437, 360], 50_000, 0)
    assert [part.tolist() for part in everything] == [list(range(1437)), list(range(360))]


def test_amid_training_a_few_images_are_looked_at_and_all_at_the_end(tmp_path: Path) -> None:
    counted: dict[str, list[int]] = {"train": [], "eval": []}

    def counting(data: ImageData) -> SimCLR:
        model = healthy(data)
        count = lambda module, inputs: counted["train" if module.training else "eval"].append(len(inputs[0]))  # noqa: E731
        model.encoder.register_forward_pre_hook(count)
        return model

    train(counting, digits, tmp_path, 40, val_check_interval=20)
    assert MONITORED * 1.5 / 3 <= 0.02, "a view is trained for three forward passes, of two thirds of an image's pixels"
    images_trained = sum(counted["train"]) // 2  # views
    assert images_trained == 40 * 32
    assert sum(counted["eval"]) == 2 * math.floor(MONITORED * 20 * 32)
    assert logged(tmp_path, "knn_accuracy").keys() == {19, 39}
