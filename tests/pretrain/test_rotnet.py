"""RotNet's turns and its loss by hand."""

import math

import pytest
import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.models.turning import turned
from usl_lightning.pretrain.rotnet import RotNet


def images(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)


def test_turns_are_counter_clockwise() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert [turn.flatten().tolist() for turn in turned(image)] == [
        [1, 2, 3, 4],
        [2, 4, 1, 3],
        [4, 3, 2, 1],
        [3, 1, 4, 2],
    ]


def test_a_step_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image four times, turned before its view is drawn, with a view of its own."""
    net = RotNet(ImageSpec(1, 8, 8, (0.3,), (0.2,), count=40), Weak(), Optimization(), backbone="small").eval()
    told: dict[str, Tensor] = {}
    monkeypatch.setattr(net, "log_training", lambda *views, **values: told.update(values))
    slots, pixels = torch.arange(5), images(5)
    batch = Batch(pixels, torch.full((5,), -1), slots, Key.of(0, slots=slots))
    loss = net.training_step(batch, 0)
    total, right = 0.0, 0
    for turn in range(4):
        view = net.view(torch.rot90(pixels, turn, (2, 3)), batch.key.fold("view", turn))
        for logits in net.head(net.encoder(view)).tolist():
            total -= math.log(math.exp(logits[turn]) / sum(math.exp(x) for x in logits))
            right += max(range(4), key=logits.__getitem__) == turn
    assert loss.item() == pytest.approx(total / 20, rel=1e-5)
    assert told["turns_told"].item() == pytest.approx(right / 20)


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(UslError, match=r"8×6, and a quarter turn of them has another shape; set data\.image_size"):
        RotNet(ImageSpec(1, 8, 6, (0.3,), (0.2,), count=40), Weak(), Optimization(), backbone="small")
