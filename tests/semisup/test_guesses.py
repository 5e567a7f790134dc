"""What stage 3 tells of its pseudo-labels and its speed, and that no step depends on it."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import Stop, StopError, few_labels, train

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec, SemiBatch
from usl_lightning.data.keys import Key
from usl_lightning.data.modules import SemiSupervisedData
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.engine.logs import MetricsCSV, Pace
from usl_lightning.engine.trainer import Trainer
from usl_lightning.semisup.fixmatch import FixMatch
from usl_lightning.semisup.semisup_module import GUESS_MOMENTUM, guess_statistics

GREY = ImageSpec(1, 8, 8, (0.3,), (0.2,), ("a", "b", "c"))


def fixmatch(monkeypatch: pytest.MonkeyPatch) -> tuple[FixMatch, dict[str, float]]:
    torch.manual_seed(0)
    model = FixMatch(GREY, Weak(), FixMatchStrong(), Optimization(), backbone="small_nf", threshold=0.4)
    with torch.no_grad():  # a head that tells these images apart
        features = model.model.encoder(batch(50, [-1] * 50).images)
        spread = features - features.mean(0)
        model.model.head.weight.copy_(torch.linalg.svd(spread, full_matrices=False).Vh[:3] / 2 / spread.std())
        model.model.head.bias.copy_(-(model.model.head.weight @ features.mean(0)))
    logged: dict[str, float] = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(
        model, "log_dict", lambda values, **_: logged.update({name: float(value) for name, value in values.items()})
    )
    return model, logged


def batch(n: int, labels: list[int], name: str = "x") -> Batch:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(labels), torch.arange(n), Key.of(0, name, slots=torch.arange(n)))


def test_the_histogram_follows_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = fixmatch(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    moving = [0.0, 0.0, 0.0]
    for _ in range(40):
        predictions = torch.randn(11, 3, generator=generator).requires_grad_()
        mask = torch.rand(11, generator=generator) < 0.6
        model.log_guesses(predictions, mask)
        counts = [0, 0, 0]
        for row, counted in zip(predictions.tolist(), mask.tolist(), strict=True):
            counts[row.index(max(row))] += counted
        moving = [GUESS_MOMENTUM * m + (1 - GUESS_MOMENTUM) * c / 11 for m, c in zip(moving, counts, strict=True)]
        assert logged["mask_rate"] == pytest.approx(sum(counts) / 11)
    assert model.guess_share.tolist() == pytest.approx(moving, rel=1e-5)
    assert "guess_share" in model.state_dict(), "a resumed run goes on with it"


@given(st.lists(st.integers(0, 50), min_size=2, max_size=30))
def test_statistics_of_a_histogram(counts: list[int]) -> None:
    found = {name: float(value) for name, value in guess_statistics(torch.tensor(counts) / 100).items()}
    total = sum(counts)
    shares = [count / total if total else 0.0 for count in counts]
    balance = -sum(share * math.log(share) for share in shares if share) / math.log(len(counts))
    assert found.pop("guess_balance") == pytest.approx(balance, abs=1e-5)
    named = {f"guesses_{i}": share for i, share in enumerate(shares)}
    if len(counts) > 20:
        quantiles = {"min": min(shares), "median": statistics.median_low(shares), "max": max(shares)}
        named = {f"guesses_{name}": share for name, share in quantiles.items()}
    assert found == pytest.approx(named, abs=1e-6)


def test_fixmatch_tells_of_its_guesses_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = SemiBatch(batch(3, [0, 1, 2]), batch(30, [-1] * 30, "u"))
    losses = []
    for silent in (False, True):
        model, logged = fixmatch(monkeypatch)
        if silent:
            monkeypatch.setattr(model, "log_guesses", lambda *_: None)
        losses.append(model.training_step(batches, 0))
        assert ("mask_rate" in logged) != silent
    assert torch.equal(*losses)


def test_a_validation_tells_how_many_guesses_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model, logged = fixmatch(monkeypatch)
    model.eval()
    unlabelled = batch(60, [i % 3 if i % 4 else -1 for i in range(60)])
    for rows in torch.arange(60).chunk(2):
        part = Batch(unlabelled.images[rows], unlabelled.labels[rows], rows, unlabelled.key[rows])
        model.validation_step(part, 0)
    model.on_validation_epoch_end()
    images = confident = known = right = 0
    with torch.no_grad():
        for row, label in zip(
            model.model(unlabelled.images).softmax(1).tolist(), unlabelled.labels.tolist(), strict=True
        ):
            images += 1
            if max(row) >= model.threshold:
                confident += 1
                known += label >= 0
                right += label == row.index(max(row))
    assert 0 < right < known < confident
    assert logged == {
        "pseudo_label_rate": pytest.approx(confident / images),
        "pseudo_label_accuracy": pytest.approx(right / known),
    }
    logged.clear()
    model.validation_step(batch(60, [-1] * 60), 0)
    model.on_validation_epoch_end()
    assert logged == {"pseudo_label_rate": pytest.approx(confident / images)}, "no labels, no accuracy"


def test_the_unlabelled_images_looked_at_are_not_labelled_ones() -> None:
    data = few_labels()
    data.trainer = None
    data.setup("validate")
    test, guessed = data.val_dataloader()
    indices = torch.cat([part.indices for part in guessed])
    assert sorted(indices.tolist()) == list(range(20, 1437)), "the first 20 are labelled"
    assert len(test) > 0
    without = SemiSupervisedData(dataset="digits")
    without.setup("validate")
    assert len(without.val_dataloader()) == 1, "without an index, the test images alone"


def test_guesses_are_told_where_no_image_is_held_out(tmp_path: Path) -> None:
    def without_test() -> SemiSupervisedData:
        data = few_labels()
        data.has_test = False
        return data

    train(model_of, without_test, tmp_path, 4)
    found = rows(tmp_path / "metrics.csv")
    assert 0 < found["pseudo_label_accuracy"][3] <= found["pseudo_label_rate"][3] * 1437
    assert not [name for name in found if name.startswith("test_")]


# In training ---------------------------------------------------------------------------------------------


def model_of(data: Any) -> FixMatch:
    return FixMatch(
        data.spec, Weak(), FixMatchStrong(), Optimization(), backbone="small_w16", threshold=0.11, ema_decay=0.9
    )


def rows(path: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for step, name, value in (line.split(",") for line in path.read_text().splitlines()[1:]):
        found.setdefault(name, {})[int(step)] = float(value)
    return found


def test_what_is_logged_and_when(tmp_path: Path) -> None:
    checkpoint = train(model_of, few_labels, tmp_path, 4)
    found = rows(tmp_path / "metrics.csv")
    for name in ("mask_rate", "guess_balance", *(f"guesses_{i}" for i in range(10))):
        assert set(found[name]) == {0, 1, 2, 3}, name
    share = checkpoint["state_dict"]["guess_share"]
    assert [found[f"guesses_{i}"][3] for i in range(10)] == pytest.approx((share / share.sum()).tolist())
    for name in ("test_calibration_error", "test_accuracy_online", "pseudo_label_rate", "pseudo_label_accuracy"):
        assert set(found[name]) == {3}, name


def test_rate_and_speed_at_the_steps_that_are_logged(tmp_path: Path) -> None:
    def trainer(*callbacks: Any) -> Trainer:
        return Trainer(
            accelerator="cpu", devices=1, max_epochs=-1, max_steps=6, log_every_n_steps=2, val_check_interval=3,
            check_val_every_n_epoch=None, num_sanity_val_steps=0, use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            logger=MetricsCSV(tmp_path / "metrics.csv"), callbacks=[Pace(tmp_path / "speed.csv"), *callbacks],
        )  # fmt: skip

    def run(*callbacks: Any) -> None:
        data = few_labels()
        data.batch_size = 4
        trainer(*callbacks).fit(model_of(data), datamodule=data)

    with pytest.raises(StopError):
        run(Stop(3))
    (tmp_path / "metrics.csv").unlink()
    run()
    rates = rows(tmp_path / "metrics.csv")["lr"]
    assert rates == {step: pytest.approx(0.03 * 0.5 * (1 + math.cos(math.pi * step / 6))) for step in (1, 3, 5)}
    speeds = rows(tmp_path / "speed.csv")["images_per_second"]
    assert set(speeds) == {1, 3, 5}
    assert all(0 < speed < math.inf for speed in speeds.values())
    assert (tmp_path / "speed.csv").read_text().count("images_per_second") == 3, "a new run starts a new file"
