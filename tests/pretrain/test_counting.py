"""Learning to count: its loss by loops over images, pixels and things counted."""

import pytest
import torch
from by_hand import IMAGE, assert_steps_are, batch_of
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.views import Evaluation, Weak
from usl_lightning.pretrain.counting import Counting, counting_loss, quarters


def test_quarters_and_halves() -> None:
    images = torch.arange(2 * 4 * 6, dtype=torch.float32).view(2, 1, 4, 6)
    half, tiles = quarters(images)
    assert list(half.shape) == [2, 1, 2, 3]
    assert list(tiles.shape) == [8, 1, 2, 3]
    for image in range(2):
        for i in range(2):
            for j in range(3):
                block = images[image, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                assert half[image, 0, i, j] == block.mean()
                for tile, (top, left) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
                    assert tiles[2 * tile + image, 0, i, j] == images[image, 0, top + i, left + j]


def test_the_loss_of_exact_counts() -> None:
    """Nothing if the quarters have as much as the whole and others differ enough; M if they do not at all."""
    whole = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
    same, other = counting_loss(whole, whole.expand(4, 2, 2) / 4, margin=10)
    assert (same.item(), other.item()) == (0, 0)
    same, other = counting_loss(torch.ones(2, 2), torch.ones(4, 2, 2) / 4, margin=10)
    assert (same.item(), other.item()) == (0, 10)


def test_steps_by_hand() -> None:
    net = Counting(IMAGE, Weak(), Optimization(), counts=5, hidden_dim=7, margin=2.0, backbone="small_w16")

    def slow(batch: Batch, step: int) -> Tensor:
        view = net.view(batch.images, batch.key.fold("view"))
        small = torch.stack(
            [view[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in range(0, 8, 2) for j in (0, 2, 4, 6)]
        )
        small = small.permute(1, 2, 0).reshape(8, 1, 4, 4)
        tiles = [view[:, :, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]
        counts = net.projector(net.encoder(torch.cat([small, *tiles]))).clamp(min=0)
        losses = []
        for i in range(8):
            total = [sum(counts[8 * tile + i, k] for tile in range(1, 5)) for k in range(5)]
            same = sum((counts[i, k] - total[k]) ** 2 for k in range(5))
            other = sum((counts[(i + 1) % 8, k] - total[k]) ** 2 for k in range(5))
            losses.append(same + (2 - other).clamp(min=0))
        return torch.stack(losses).mean()  # type: ignore[arg-type]

    assert_steps_are(net, slow)


def test_views_without_equal_quarters_are_refused() -> None:
    net = Counting(IMAGE, Evaluation(7), Optimization(), counts=5, hidden_dim=7, backbone="small_w16")
    with pytest.raises(UslError, match=r"model\.view: its images have 7×7 pixels, which have no equal quarters"):
        net.training_step(batch_of(0), 0)
