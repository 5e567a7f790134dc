"""Images that a backbone cannot look at are refused in a line, before anything is trained."""

import pytest
import torch

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.backbones import OURS, create_backbone
from usl_lightning.models.encoder import Encoder


def spec(height: int, width: int) -> ImageSpec:
    return ImageSpec(1, height, width, (0.5,), (0.25,))


@pytest.mark.parametrize("name", ["small_w16", "small_s2", "wrn_28_2", "wrn_37_2", "wrn_37_2_s2", "resnet18_cifar"])
def test_the_stated_stride_is_the_maps(name: str) -> None:
    net, _ = create_backbone(name, 1)
    sides: list[int] = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 1, 64, 64))
    assert net.output_stride == 64 // min(sides)


@pytest.mark.parametrize(("name", "stride"), [("small_s2", 8), ("resnet18_cifar", 8), ("mobilenetv3_small_050", 32)])
def test_a_side_shorter_than_the_stride_is_refused(name: str, stride: int) -> None:
    Encoder(name, spec(stride, stride))
    for height, width in ((stride - 1, 40), (40, stride - 1)):
        with pytest.raises(UslError) as error:
            Encoder(name, spec(height, width))
        message = str(error.value)
        assert f"'{name}' reduces images {stride}-fold, these have {height}×{width} pixels" in message
        assert "--data.image_size" in message
        assert "\n" not in message


def test_a_network_for_one_size_says_which() -> None:
    with pytest.raises(UslError, match=r"made for images of 224×224 pixels, these have 32×32; .*--data.image_size 224"):
        Encoder("vit_tiny_patch16_224", spec(32, 32))
    Encoder("vit_tiny_patch16_224", spec(224, 224))


@pytest.mark.parametrize(("height", "width"), [(62, 224), (224, 62)])
def test_images_too_small_for_alexnet_are_refused_before_the_first_step(height: int, width: int) -> None:
    with pytest.raises(
        UslError, match=rf"'alexnet_small' needs .* 63 pixels a side or more, these have {height}×{width}"
    ):
        Encoder("alexnet_small", spec(height, width))


def test_all_ours_take_the_images_they_are_for() -> None:
    small = [name for name in OURS if name.startswith(("small", "wrn_28_2", "resnet18"))]
    assert len(small) >= 7
    for name in small:
        Encoder(name, spec(8, 8))
