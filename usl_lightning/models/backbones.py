"""Backbones by name: ours, the CIFAR variants of ResNet, and any model of timm."""

from collections.abc import Callable
from functools import partial

from torch import nn

from usl_lightning.errors import UslError, did_you_mean
from usl_lightning.models.alexnet import AlexNet
from usl_lightning.models.small import SmallNet
from usl_lightning.models.wrn import WideResNet


def _cifar_resnet(channels: int, *, name: str) -> nn.Module:
    """ResNet with the CIFAR stem: a 3×3 convolution of stride 1, no pooling (SimCLR, App. B.9)."""
    import timm

    net = timm.create_model(name, num_classes=0, in_chans=channels)
    net.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    net.output_stride = 8
    return net


OURS: dict[str, Callable[[int], nn.Module]] = {
    "small": SmallNet,
    "small_w16": partial(SmallNet, width=16),
    "small_w64": partial(SmallNet, width=64),
    "small_s2": partial(SmallNet, stem_stride=2),
    "small_s2_w64": partial(SmallNet, width=64, stem_stride=2),
    "small_nf": partial(SmallNet, width=16, norm="none"),
    "wrn_28_2": partial(WideResNet, depth=28, width=2),
    "wrn_28_8": partial(WideResNet, depth=28, width=8),
    "wrn_37_2": partial(WideResNet, depth=37, width=2, groups=4),
    "resnet18_cifar": partial(_cifar_resnet, name="resnet18"),
    "resnet34_cifar": partial(_cifar_resnet, name="resnet34"),
    "resnet50_cifar": partial(_cifar_resnet, name="resnet50"),
    "alexnet": AlexNet,
    "alexnet_small": partial(AlexNet, filters=(64, 192, 384, 256, 256)),
}


def create_backbone(name: str, channels: int, *, pretrained: bool = False) -> tuple[nn.Module, int]:
    """A network from images [b, channels, h, w] to features [b, d], and d.

    Args:
        name: a key of `OURS`, or any model name of timm.
        channels: input channels; timm adapts pretrained first layers to it.
        pretrained: load timm's weights (needs them in timm's cache, or a network connection).

    Raises:
        UslError: an unknown name, or `pretrained` for a network without published weights.
    """
    if name in OURS:
        if pretrained:
            raise UslError(f"model.pretrained: '{name}' has no published weights; use a timm model or model.init_from")
        net = OURS[name](channels)
        dim = net.feature_dim if hasattr(net, "feature_dim") else net.num_features
        return net, int(dim)  # type: ignore[arg-type]
    import timm

    if not timm.is_model(name):
        known = [*OURS, *timm.list_models()]
        raise UslError(
            f"model.backbone: unknown '{name}'{did_you_mean(name, known)}; "
            f"expected one of {', '.join(OURS)} or a model of timm"
        )
    net = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels)
    # Some networks (MobileNet v3) end in a wider layer than their last maps.
    return net, int(getattr(net, "head_hidden_size", net.num_features))  # type: ignore[arg-type]


def check_image_size(net: nn.Module, name: str, height: int, width: int) -> None:
    """Refuse images that a network made by `create_backbone` cannot look at properly.

    Raises:
        UslError: a side is shorter than one step of the network's last map, or the network is made for another size.
    """
    info = getattr(net, "feature_info", None)
    stride = int(getattr(net, "output_stride", info[-1]["reduction"] if info else 1))  # type: ignore[index]
    if min(height, width) < stride:
        raise UslError(
            f"model.backbone: '{name}' reduces images {stride}-fold, these have {height}×{width} pixels; expected "
            f"{stride} a side or more: enlarge them with --data.image_size, or take small or resnet18_cifar"
        )
    patches = getattr(net, "patch_embed", None)
    size = tuple(getattr(patches, "img_size", None) or ()) if getattr(patches, "strict_img_size", False) else ()
    if size and size != (height, width):
        raise UslError(
            f"model.backbone: '{name}' is made for images of {size[0]}×{size[1]} pixels, these have {height}×{width}; "
            f"resize them with --data.image_size {size[0]}"
        )
