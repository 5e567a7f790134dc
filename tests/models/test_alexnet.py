"""AlexNet: layers and sizes as published, against torchvision's."""

import itertools

import pytest
import torch
from torch import nn
from torchvision.models import alexnet

from usl_lightning.base.errors import UslError
from usl_lightning.models.alexnet import SMALLEST, AlexNet
from usl_lightning.models.backbones import OURS, create_backbone

LARGE, SMALL = (96, 256, 384, 384, 256), (64, 192, 384, 256, 256)
KERNELS = (11, 5, 3, 3, 3)


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize(("name", "filters"), [("alexnet", LARGE), ("alexnet_small", SMALL)])
@pytest.mark.parametrize("channels", [1, 3])
def test_variants_have_the_papers_filters(name: str, filters: tuple[int, ...], channels: int) -> None:
    net, dim = create_backbone(name, channels)
    assert dim == 256 * 6 * 6
    assert [c.out_channels for c in convolutions(net)] == list(filters)
    weights = sum(k * k * a * b for k, (a, b) in zip(KERNELS, itertools.pairwise((channels, *filters)), strict=True))
    assert sum(p.numel() for p in net.parameters()) == weights + 2 * sum(filters), "a scale and a shift a filter"


def test_small_variant_is_torchvisions_with_batch_norm() -> None:
    """The same convolutions and poolings in the same order: with a neutral batch norm, the same features."""
    torch.manual_seed(0)
    theirs = alexnet(weights=None).features.double().eval()
    ours = AlexNet(3, SMALL).double().eval()
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for own, norm, other in zip(convolutions(ours), norms, convolutions(theirs), strict=True):
            own.weight.copy_(other.weight)
            norm.bias.copy_(other.bias)
            norm.running_var.fill_(1 - norm.eps)
        images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
        torch.testing.assert_close(ours(images), theirs(images).flatten(1))


@pytest.mark.parametrize(("height", "width"), [(SMALLEST, SMALLEST), (64, 96), (256, 224)])
def test_images_of_other_sizes_have_features_of_the_same_dimension(height: int, width: int) -> None:
    net = AlexNet(1, (4, 4, 4, 4, 4)).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 1, height, width)).shape == (2, 4 * 36) == (2, net.feature_dim)


@pytest.mark.parametrize(("height", "width"), [(SMALLEST - 1, 224), (224, 32)])
def test_images_too_small_are_refused_in_a_line(height: int, width: int) -> None:
    with pytest.raises(UslError, match=rf"63 pixels a side or more, these have {height}×{width}.*image_size 224") as e:
        OURS["alexnet_small"](1)(torch.rand(1, 1, height, width))
    assert "\n" not in str(e.value)
