"""Exemplar-CNN: its loss and the pieces that stand for images, by loops."""

import pytest
import torch
from by_hand import IMAGE, IMAGES, assert_steps_are
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.data.views.patches import eventful_patches
from usl_lightning.pretrain.exemplar import Exemplar


@pytest.mark.parametrize("patch", [None, 5])
def test_steps_by_hand(patch: int | None) -> None:
    """An image is its own class, and so is the same piece of it in every step."""
    net = Exemplar(IMAGE, Weak(), Optimization(), patch=patch, backbone="small_w16")

    def slow(batch: Batch, step: int) -> Tensor:
        seeds = batch.images
        if patch is not None:
            seeds = eventful_patches(seeds, Key.of(0, "seed patches", slots=batch.indices), size=patch)
        logits = net.head(net.encoder(net.view(seeds, batch.key.fold("view"))))
        assert list(logits.shape) == [8, IMAGES]
        losses = [-(row.exp()[i] / row.exp().sum()).log() for row, i in zip(logits, batch.indices, strict=True)]
        return torch.stack(losses).mean()

    assert_steps_are(net, slow)


def test_pieces_lie_where_gradients_are() -> None:
    """As often as the gradients of their squares say; those of other images change nothing."""
    image = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image[:, :, :, 4:] //= 16
    draws, size = 6000, 4
    grey = (image[0].double() * torch.tensor([0.299, 0.587, 0.114])[:, None, None].double()).sum(0)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for top in range(3):
        for left in range(4):
            square = grey[top : top + size, left : left + size]
            expected[top, left] = square.diff(dim=0).square().sum() + square.diff(dim=1).square().sum()
    expected /= expected.sum()
    key = Key.of(1, slots=torch.arange(draws))
    found = eventful_patches(image.expand(draws, -1, -1, -1), key, size=size)
    counts = torch.zeros_like(expected)
    for top in range(3):
        for left in range(4):
            square = image[0, :, top : top + size, left : left + size]
            counts[top, left] = (found == square).flatten(1).all(1).sum()
    assert counts.sum() == draws
    assert float((counts / draws - expected).abs().max()) < 0.02
    other = torch.cat([image, 255 - image, image])
    torch.testing.assert_close(eventful_patches(other, key[:3], size=size)[::2], found[:3][::2])


def test_pieces_of_flat_images_and_of_all_sizes() -> None:
    flat, key = torch.full((50, 1, 5, 5), 7, dtype=torch.uint8), Key.of(0, slots=torch.arange(50))
    assert list(eventful_patches(flat, key, size=1).shape) == [50, 1, 1, 1]
    assert torch.equal(eventful_patches(flat, key, size=5), flat)
    with pytest.raises(UslError, match=r"model\.patch: 6 pixels of images of 5×5; use fewer, or null"):
        eventful_patches(flat, key, size=6)
