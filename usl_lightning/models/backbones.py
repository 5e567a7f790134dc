"""Backbones by name: ours, the CIFAR variants of ResNet, and any model of timm."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.decode import Interpolation
from usl_lightning.models.alexnet import AlexNet
from usl_lightning.models.names import TRAINED_FOR
from usl_lightning.models.published import check_hub, local_weights, no_published, read_weights
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
    # What re-implementations of FixMatch have instead: kekmodel's the next two, TorchSSL on STL-10 the last.
    "wrn_28_2_raw": partial(WideResNet, depth=28, width=2, raw=True, eps=1e-5),
    "wrn_28_8_raw": partial(WideResNet, depth=28, width=8, raw=True, eps=1e-5),
    "wrn_37_2_s2": partial(WideResNet, depth=37, width=2, groups=4, first_stride=2),
    "wrn_37_2_raw_s2": partial(WideResNet, depth=37, width=2, groups=4, raw=True, first_stride=2),
    "resnet18_cifar": partial(_cifar_resnet, name="resnet18"),
    "resnet34_cifar": partial(_cifar_resnet, name="resnet34"),
    "resnet50_cifar": partial(_cifar_resnet, name="resnet50"),
    "alexnet": AlexNet,
    "alexnet_small": partial(AlexNet, filters=(64, 192, 384, 256, 256)),
}


def backbone_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """The networks that a parameter `backbone` names: one, several with commas between them, or a list.

    Raises:
        UslError: none, or one of them twice.
    """
    listed = given.split(",") if isinstance(given, str) else given
    names = tuple(name.strip() for name in listed)
    if not names or not all(names) or len(set(names)) < len(names):
        raise UslError(f"model.backbone: {given!r}; expected names of networks with commas between them, each once")
    return names


def own_name(backbone: str, image: ImageSpec) -> str:
    """The name in `SideBySide` of a network that was trained here, `small_s2@1x28x28`."""
    return f"{backbone}{TRAINED_FOR}{image.channels}x{image.height}x{image.width}"


def _own_image(name: str) -> ImageSpec | None:
    """The images of a network that was trained here; None of a published one."""
    _, own, size = name.partition(TRAINED_FOR)
    if not own:
        return None
    channels, height, width = map(int, size.split("x"))
    return ImageSpec(channels, height, width, (0.0,) * channels, (1.0,) * channels)


def _native_image(name: str, channels: int) -> ImageSpec:
    """The images of a published network."""
    size, _ = native_size(name)
    return published_image(name, ImageSpec(channels, size, size, (), ()))


def luma(images: Tensor) -> Tensor:
    """Grey images [b, 1, h, w] of RGB ones, by ITU-R 601-2 as Pillow's."""
    weights = torch.tensor((0.299, 0.587, 0.114), dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def fitted(images: Tensor, image: ImageSpec) -> Tensor:
    """Images [b, c, h, w] in [0, 1] in the size and channels of others."""
    x = luma(images) if image.channels < images.shape[1] else images
    if tuple(x.shape[2:]) == (image.height, image.width):
        return x
    return F.interpolate(x, (image.height, image.width), mode="bicubic", antialias=True).clamp(0, 1)


class SideBySide(nn.Module):
    """Networks side by side: square images [b, c, h, w] in [0, 1] -> features [b, d₁ + d₂ + …].

    Each sees the images in its own size and channels, normalised as it was trained. Its features have length 1, so that
    all networks count the same.

    Args:
        names: model names of timm that have published weights; one that was trained here is named with the images it
            is for, see `own_name`, and its weights and statistics are yet to be loaded.
        channels: of the images.
        pretrained: with the published weights.
    """

    def __init__(self, names: Sequence[str], channels: int, *, pretrained: bool) -> None:
        super().__init__()
        self.images = [_own_image(name) or _native_image(name, channels) for name in names]
        made = [
            create_backbone(
                name.partition(TRAINED_FOR)[0], image.channels, pretrained=pretrained and TRAINED_FOR not in name
            )
            for name, image in zip(names, self.images, strict=True)
        ]
        self.nets = nn.ModuleList(net for net, _ in made)
        self.dims = [dim for _, dim in made]
        self.feature_dim = sum(self.dims)
        for number, image in enumerate(self.images):
            self.register_buffer(f"mean{number}", torch.tensor(image.mean).view(1, -1, 1, 1))
            self.register_buffer(f"std{number}", torch.tensor(image.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features [b, d]."""
        parts = []
        for number, (net, image) in enumerate(zip(self.nets, self.images, strict=True)):
            x = (fitted(images, image) - self.get_buffer(f"mean{number}")) / self.get_buffer(f"std{number}")
            parts.append(F.normalize(net(x).float(), dim=1))
        return torch.cat(parts, dim=1)


def create_backbone(
    name: str, channels: int, *, pretrained: bool = False, projection: bool = False
) -> tuple[nn.Module, int]:
    """A network from images [b, channels, h, w] to features [b, d], and d.

    Args:
        name: a key of `OURS`, any model name of timm, or several with commas between them, see `SideBySide`.
        channels: input channels; timm adapts pretrained first layers to it.
        pretrained: with published weights: of a file in the folder of weights, of an installed package, of timm's
            cache, or fetched from timm's hub; see `published.py`.
        projection: of a published one: with the layer that CLIP's networks have behind their features, which makes the
            embedding that is compared with texts.

    Raises:
        UslError: an unknown name, `pretrained` for a network whose published weights do not exist or cannot be loaded,
            or `projection` of one that was not trained with texts.
    """
    net: nn.Module
    if projection:
        return _with_projection(name, channels)
    if "," in name:
        net = SideBySide(backbone_names(name), channels, pretrained=pretrained)
    elif pretrained:
        net = _with_published_weights(name, channels)
    elif name in OURS:
        net = OURS[name](channels)
    else:
        import timm

        _config(name)
        net = timm.create_model(name, num_classes=0, in_chans=channels)
    if hasattr(net, "feature_dim"):
        return net, int(net.feature_dim)  # type: ignore[arg-type]
    # Some networks (MobileNet v3) end in a wider layer than their last maps.
    return net, int(getattr(net, "head_hidden_size", net.num_features))  # type: ignore[arg-type]


def _with_projection(name: str, channels: int) -> tuple[nn.Module, int]:
    """A network of timm with its published weights and CLIP's projection, and the dimensions of the embedding."""
    if "clip" not in name:
        raise UslError(
            f"model.head: '{name}' has no projection; expected a checkpoint, or one of CLIP's networks, such as "
            "vit_base_patch32_clip_224.openai; or use model.head encoder"
        )
    net = _with_classifier(name, channels)
    layer = net.get_classifier()
    if not isinstance(layer, nn.Linear):
        raise UslError(f"model.head: timm has no projection of '{name}' that stands by itself; use model.head encoder")
    net.reset_classifier(0)
    return nn.Sequential(net, layer), layer.out_features


def _with_published_weights(name: str, channels: int) -> nn.Module:
    """A network of timm, its published weights, no classifier."""
    net = _with_classifier(name, channels)
    net.reset_classifier(0)
    return net


def _with_classifier(name: str, channels: int) -> Any:
    """A network of timm with its published weights, all of which must be the network's."""
    import timm

    config = _published(name)
    path = local_weights(name, config)
    if path is None:
        check_hub(name, config)
    overlay = {} if path is None else {"state_dict": read_weights(path, name), "custom_load": False}
    try:
        # With the classifier they were trained with: timm lets weights be missing only where that is another.
        net = timm.create_model(
            name, pretrained=True, num_classes=config.num_classes, in_chans=channels, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # no connection, a full disk, other weights: as many kinds as there are hubs
        lines = [line.strip()[:150] for line in str(error).splitlines() if line.strip()][:4]
        raise UslError(
            f"model.backbone: the published weights of '{name}' cannot be loaded"
            f"{f' from {path}' if path else ''} ({type(error).__name__}: {' '.join(lines)})"
        ) from error
    net.pretrained_cfg.pop("state_dict", None)  # not once more with every copy of the network
    return net


def published_image(name: str, image: ImageSpec) -> ImageSpec:
    """The images with the statistics that a network's published weights were trained with.

    For one channel they are the mean of the three: timm adds up the first layer's weights, so that the network sees
    three equal channels.

    Raises:
        UslError: an unknown name, a network without published weights, or one for images of another size.
    """
    if "," in name:
        zeros, ones = (0.0,) * image.channels, (1.0,) * image.channels  # each network has its own
        return ImageSpec(image.channels, image.height, image.width, zeros, ones, image.classes, image.count)
    config = _published(name)
    if config.fixed_input_size:
        _check_made_for(name, config.input_size[1:], image.height, image.width)
    mean, std = tuple(config.mean), tuple(config.std)
    if image.channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return ImageSpec(image.channels, image.height, image.width, mean, std, image.classes, image.count)


def native_size(name: str) -> tuple[int, Interpolation]:
    """The side of the images that a published network looks at, in pixels, and how they are brought to it.

    Args:
        name: of several with commas between them, the largest tells.

    Raises:
        UslError: an unknown name, or a network without published weights.
    """
    published = [_published(one) for one in backbone_names(name) if TRAINED_FOR not in one]
    config = max(published, key=lambda config: config.input_size[-1])
    return config.input_size[-1], "bicubic" if config.interpolation == "bicubic" else "bilinear"


def _published(name: str) -> Any:
    """timm's description of a network that has published weights."""
    config = None if name in OURS else _config(name)
    if config is None or not config.has_weights:
        raise no_published(name)
    return config


def _config(name: str) -> Any:
    """timm's description of a network and its weights; None if there is none."""
    import timm

    if not timm.is_model(name):
        known = [*OURS, *timm.list_models()]
        raise UslError(
            f"model.backbone: unknown '{name}'{did_you_mean(name, known)}; "
            f"expected one of {', '.join(OURS)} or a model of timm"
        )
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture = name.partition(".")[0]
        known = timm.list_pretrained(f"{architecture}.*")
        raise UslError(
            f"model.backbone: timm has no weights '{name}'{did_you_mean(name, known)}; "
            f"expected one of {', '.join([architecture, *known])}"
        ) from None


def check_image_size(net: nn.Module, name: str, height: int, width: int) -> None:
    """Refuse images that a network made by `create_backbone` cannot look at properly.

    Raises:
        UslError: a side is shorter than one step of the network's last map or than the network can take, or the
            network is made for another size.
    """
    smallest = int(getattr(net, "smallest_side", 1))  # type: ignore[arg-type]
    if min(height, width) < smallest:
        raise UslError(
            f"model.backbone: '{name}' needs images of {smallest} pixels a side or more, these have {height}×{width}; "
            "enlarge them with --data.image_size 224"
        )
    info = getattr(net, "feature_info", None)
    stride = int(getattr(net, "output_stride", info[-1]["reduction"] if info else 1))  # type: ignore[index]
    if min(height, width) < stride:
        raise UslError(
            f"model.backbone: '{name}' reduces images {stride}-fold, these have {height}×{width} pixels; expected "
            f"{stride} a side or more: enlarge them with --data.image_size, or take small or resnet18_cifar"
        )
    patches = getattr(net, "patch_embed", None)
    size = tuple(getattr(patches, "img_size", None) or ()) if getattr(patches, "strict_img_size", False) else ()
    if size:
        _check_made_for(name, size, height, width)


def _check_made_for(name: str, size: Sequence[int], height: int, width: int) -> None:
    if tuple(size) != (height, width):
        raise UslError(
            f"model.backbone: '{name}' is made for images of {size[0]}×{size[1]} pixels, these have {height}×{width}; "
            f"resize them with --data.image_size {size[0]}"
        )
