"""Self-training, EMAN-FixMatch and S4L: losses against loops over many steps, and what they keep."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import few_labels, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import FixMatchStrong, Weak
from usl_lightning.models.ema import EMA
from usl_lightning.semisup.eman import EMANFixMatch
from usl_lightning.semisup.s4l import S4L, s4l_losses
from usl_lightning.semisup.self_training import SelfTraining, round_steps, self_training_loss


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def test_self_training_is_the_loops() -> None:
    for seed in range(30):
        logits = draw(seed, 8, 4)
        labels = torch.randint(-1, 4, (8,), generator=torch.Generator().manual_seed(seed)).int()
        loss, mask = self_training_loss(logits, labels)
        rows = zip(logits.tolist(), labels.tolist(), strict=True)
        assert loss.item() == pytest.approx(-sum(log_softmax(row)[k] for row, k in rows if k >= 0) / 8)
        assert mask.tolist() == [k >= 0 for k in labels.tolist()]
        loss.backward()
        assert logits.grad is not None
        assert bool((logits.grad[labels < 0] == 0).all())
    assert self_training_loss(draw(0, 3, 4), torch.full((3,), -1))[0].item() == 0


def test_rounds_are_even() -> None:
    assert round_steps(100, 4) == (20, 40, 60, 80)
    assert round_steps(2, 4) == (1,)
    assert round_steps(6, 2) == (2, 4)


def test_the_moving_average_labels_all_images(tmp_path: Path) -> None:
    def model(data: ImageData, **options: Any) -> SelfTraining:
        how = {"rounds": 2, "threshold": 0.2, "ema_decay": 0.5, **options}
        return SelfTraining(
            data.spec, Weak(), FixMatchStrong(), Optimization(schedule="constant"), backbone="small_w16", **how
        )

    after = train(model, few_labels, tmp_path / "six", 6)["state_dict"]
    assert int(after["labelled_at"]) == 4
    data = few_labels()
    before = train(lambda data: model(data), few_labels, tmp_path / "four", 4)["state_dict"]
    network = model(data)
    network.load_state_dict(before)
    data.setup("predict")
    labels = torch.cat([network.ema.module(batch.images).softmax(1).max(1).indices for batch in data.whole_set()])
    sure = torch.cat([network.ema.module(batch.images).softmax(1).amax(1) >= 0.2 for batch in data.whole_set()])
    rows, known = (torch.tensor(column) for column in data.index.for_training())
    expected = torch.where(sure, labels, -1)
    expected[rows] = known
    assert int(before["labelled_at"]) == 2
    assert float((after["labels"] == expected).float().mean()) > 0.99
    assert 0 < int((expected >= 0).sum()) < len(expected)


@pytest.mark.parametrize(("steps", "taken"), [(1, 0), (3, 2), (6, 4)])
def test_rounds_above_the_steps_are_told(steps: int, taken: int, tmp_path: Path, caplog: Any) -> None:
    def model(data: ImageData) -> SelfTraining:
        made.append(SelfTraining(data.spec, Weak(), FixMatchStrong(), Optimization(), backbone="small_w16", rounds=4))
        return made[-1]

    made: list[SelfTraining] = []
    with caplog.at_level("INFO", "usl_lightning"):
        train(model, few_labels, tmp_path, steps)
    assert made[-1].lowered == ({"rounds": taken} if taken < 4 else {})
    assert made[-1].evaluate({}, few_labels(), closely=False).metrics == made[-1].lowered
    assert (f"{taken} rounds instead of 4" in caplog.text) == (taken < 4)


def test_the_teacher_averages_its_statistics(tmp_path: Path) -> None:
    online = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3))
    ema, norm = EMA(online, 0.9, average_buffers=True), online[1]
    mean, variance = torch.zeros(3), torch.ones(3)
    for step in range(30):
        online(torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(step)))
        ema.update(online)
        mean, variance = 0.9 * mean + 0.1 * norm.running_mean, 0.9 * variance + 0.1 * norm.running_var
    torch.testing.assert_close(ema.module[1].running_mean, mean)
    torch.testing.assert_close(ema.module[1].running_var, variance)
    assert int(ema.module[1].num_batches_tracked) == 30
    assert not torch.allclose(ema.module[1].running_mean, norm.running_mean)
    spec = few_labels().spec
    model = EMANFixMatch(spec, Weak(), FixMatchStrong(), Optimization(), backbone="small_w16")
    assert model.ema.average_buffers
    assert not model.ema.train().module.training


def test_s4ls_losses_are_the_loops() -> None:
    for seed in range(30):
        logits, turns = draw(seed, 12, 5), draw(seed + 100, 28, 4)
        labels = torch.randint(0, 5, (3,), generator=torch.Generator().manual_seed(seed))
        supervised, rotation = s4l_losses(logits, labels, turns)
        classes = [-log_softmax(row)[int(labels[i % 3])] for i, row in enumerate(logits.tolist())]
        told = [-log_softmax(row)[i // 7] for i, row in enumerate(turns.tolist())]
        assert supervised.item() == pytest.approx(sum(classes) / 12)
        assert rotation.item() == pytest.approx(sum(told) / 28)


def test_s4l_turns_square_images_alone() -> None:
    image = ImageSpec(1, 8, 6, (0.5,), (0.5,), ("a", "b"))
    with pytest.raises(UslError, match="S4L: the images are 8×6, and a quarter turn"):
        S4L(image, Weak(), Optimization(), "small_w16")
