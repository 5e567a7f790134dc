"""Activation checkpointing against a plain pass: the same bits, blocks computed twice, fewer tensors kept."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.encoder import Encoder, recompute_encoders
from usl_lightning.models.recompute import blocks_of

BACKBONES = {"small_w16": 3, "wrn_28_2": 12, "resnet18_cifar": 8, "test_vit": 2}


def encoder(backbone: str) -> Encoder:
    torch.manual_seed(0)
    side = 160 if backbone == "test_vit" else 16
    return Encoder(backbone, ImageSpec(3, side, side, (0.5,) * 3, (0.25,) * 3))


def passed(model: Encoder) -> tuple[Tensor, int]:
    """The features after a training step, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    generator = torch.Generator().manual_seed(1)
    shape = (8, 3, model.image.height, model.image.width)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model(images)
    features.square().sum().backward()
    return features.detach(), sum(kept.values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_same_bits_from_fewer_tensors(backbone: str) -> None:
    plain = encoder(backbone).train()
    thrifty = copy.deepcopy(plain)
    recompute_encoders(nn.ModuleList([thrifty]))
    runs: dict[nn.Module, int] = {}

    def count(module: nn.Module, *_: Any) -> None:
        runs[module] = runs.get(module, 0) + 1

    inner = [next(module.children()) for module in blocks_of(thrifty.net)]
    for module in inner:
        module.register_forward_hook(count)
    (ours, few), (theirs, many) = passed(thrifty), passed(plain)
    assert len(inner) >= BACKBONES[backbone]
    assert set(runs.values()) == {2}, "once forward, once again backward"
    assert len(runs) == len(inner)
    assert few < 0.6 * many
    assert torch.equal(ours, theirs)
    assert thrifty.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, thrifty.state_dict()[name]), name
    for (name, parameter), own in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert own.grad is not None, name
        assert torch.equal(parameter.grad, own.grad), name


def test_evaluation_keeps_nothing_and_changes_nothing() -> None:
    model = encoder("small_w16").eval()
    recompute_encoders(model)
    before = copy.deepcopy(model.state_dict())
    passed(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_network_without_blocks_is_refused() -> None:
    model = encoder("small_w16")
    model.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(UslError, match="activation_checkpointing: 'small_w16' is made of no blocks"):
        recompute_encoders(model)
