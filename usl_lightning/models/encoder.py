"""An encoder: normalisation and backbone together, so that whoever loads it inherits both."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from usl_lightning.base.arrays import check_records
from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import as_noted
from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.backbones import SideBySide, check_image_size, create_backbone, fitted, published_image
from usl_lightning.models.recompute import blocks_of, recomputed

ENTRY = "encoder"
"""Key of a checkpoint under which `encoder_entry` is stored."""


class Encoder(nn.Module):
    """Images -> features.

    Args:
        backbone: see `create_backbone`.
        image: channels, size and pixel statistics; the statistics become buffers, stored with the weights.
        pretrained: start from published weights; images are then normalised as those were trained.
        projection: see `create_backbone`.

    Raises:
        UslError: no such backbone or weights, or not for images of this size.

    Attributes:
        feature_dim: d of the features [b, d].
        image: what it knows of its images, with the statistics that it uses.
        recompute: a training step keeps the inputs of the network's blocks alone, see `recomputed`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, image: ImageSpec, *, pretrained: bool = False, projection: bool = False) -> None:
        super().__init__()
        if pretrained:
            image = published_image(backbone, image)
        net, self.feature_dim = create_backbone(backbone, image.channels, pretrained=pretrained, projection=projection)
        check_image_size(net, backbone, image.height, image.width)
        self.net = net.to(memory_format=torch.channels_last)
        self.backbone, self.image, self.recompute = backbone, image, False
        self.register_buffer("mean", torch.tensor(image.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(image.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features [b, d] of images [b, c, h, w], uint8 or floats in [0, 1]."""
        x = self.normalised(images)
        with recomputed(self.net) if self.recompute and self.training and torch.is_grad_enabled() else nullcontext():
            return self.net(x)

    def normalised(self, images: Tensor) -> Tensor:
        """What the network sees of images [b, c, h, w], uint8 or floats in [0, 1]."""
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return ((x - self.mean) / self.std).to(self.mean.dtype).contiguous(memory_format=torch.channels_last)

    def apart(self) -> "list[Encoder]":
        """Its networks, each an encoder of the same images; itself, if it is one.

        Their features, made as long as each other, stand side by side in its own, to the last bit.
        """
        net = self.net
        return [OneOf(self, net, i) for i in range(len(net.nets))] if isinstance(net, SideBySide) else [self]

    def spec(self) -> dict[str, Any]:
        """Plain data from which `load_encoder` rebuilds the same network."""
        image = self.image
        return {
            "backbone": self.backbone,
            "channels": image.channels,
            "height": image.height,
            "width": image.width,
            "mean": list(image.mean),
            "std": list(image.std),
            "classes": list(image.classes),
            "count": image.count,
        }


class OneOf(Encoder):
    """One network of an encoder of several, its weights shared; it sees images of any size, in its own.

    Args:
        several: the encoder.
        net: its networks.
        number: which of them.
    """

    def __init__(self, several: Encoder, net: SideBySide, number: int) -> None:
        nn.Module.__init__(self)
        self.net, self.feature_dim = net.nets[number], net.dims[number]
        self.backbone, self.image = several.backbone.split(",")[number], net.images[number]
        self.recompute = False
        self.register_buffer("mean", net.get_buffer(f"mean{number}"))
        self.register_buffer("std", net.get_buffer(f"std{number}"))
        self.train(several.training)

    def forward(self, images: Tensor) -> Tensor:
        """Features [b, d] of images [b, c, h, w], uint8 or floats in [0, 1]."""
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return super().forward(fitted(x, self.image))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's dictionary, tensors on the CPU.

    Raises:
        UslError: the file is missing, damaged, holds anything but tensors and plain data, or has changed since this
            stage noted its content.
    """
    try:
        check_records(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UslError(f"{path}: no such checkpoint") from None
    except Exception as error:
        raise UslError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); it is damaged or of another program"
        ) from error
    as_noted(path)
    if not isinstance(checkpoint, dict):
        raise UslError(f"{path}: holds a {type(checkpoint).__name__}; expected a checkpoint written by `usl fit`")
    if not _are_weights(checkpoint.get("state_dict", {})):
        raise UslError(f"{path}: its state_dict holds other things than weights; expected a checkpoint of `usl fit`")
    return checkpoint


def _are_weights(state: Any) -> bool:
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in state.items()
    )


@contextmanager
def as_written(path: str | Path) -> Iterator[None]:
    """Within it what a checkpoint holds is put together; where it does not fit, that is told of the file.

    Raises:
        UslError: something is missing, or of another type, shape or size than what it belongs to.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise UslError(
            f"{path}: what it holds does not fit together ({type(error).__name__}: {reason}); it is damaged, or was "
            "edited: expected a checkpoint as `usl fit` wrote it"
        ) from error


def encoder_entry(encoder: Encoder, **prefixes: str) -> dict[str, Any]:
    """What a checkpoint says of its encoder: how to rebuild it, and where in the state dict its weights are.

    Args:
        prefixes: `online="model.encoder."`, and `ema=…` where a moving average is kept.
    """
    return {"spec": encoder.spec(), "prefixes": prefixes}


def _stored(path: str | Path, weights: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = read_checkpoint(path)
    entry: Any = checkpoint.get(ENTRY)
    known = isinstance(entry, dict) and all(isinstance(entry.get(key), dict) for key in ("spec", "prefixes"))
    if not known or "state_dict" not in checkpoint:
        raise UslError(f"{path}: holds no encoder; expected a checkpoint written by `usl fit`")
    if not entry["prefixes"]:
        raise UslError(
            f"{path}: holds no network, its features came from a file; to look at other images train with "
            "model.backbone or model.init_from"
        )
    prefix = entry["prefixes"].get(weights)
    if not isinstance(prefix, str):
        raise UslError(f"{path}: holds no {weights} weights; it has {', '.join(map(str, entry['prefixes']))}")
    state = checkpoint["state_dict"]
    return entry["spec"], {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def stored_image(path: str | Path) -> ImageSpec:
    """What the encoder stored in a checkpoint of `usl fit` knows of its images.

    Raises:
        UslError: the file is missing, damaged, or holds no encoder.
    """
    with as_written(path):
        return _image(_stored(path, "online")[0])


def _image(spec: dict[str, Any]) -> ImageSpec:
    """Of a file, which may hold anything: the sizes are looked at before a network of that size is made."""
    mean, std, classes = (tuple(spec[name]) for name in ("mean", "std", "classes"))
    channels, height, width, count = spec["channels"], spec["height"], spec["width"], spec.get("count", 0)
    if not all(type(number) is int and 0 <= number < 2**31 for number in (channels, height, width, count)):
        raise ValueError(f"{channels}×{height}×{width} images, {count} of them")
    if channels not in (1, 3) or not len(mean) == len(std) == channels or not all(map(_is_float, (*mean, *std))):
        raise ValueError(f"{channels} channels, their mean {mean} and deviation {std}")
    if not all(isinstance(name, str) for name in classes):
        raise ValueError("a class whose name is no text")
    return ImageSpec(channels, height, width, mean, std, classes, count)


def _is_float(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def load_encoder(path: str | Path, weights: Literal["online", "ema"] = "online") -> Encoder:
    """The encoder stored in a checkpoint of `usl fit`, in evaluation mode.

    Raises:
        UslError: the file is missing, damaged, or holds no such encoder.
    """
    with as_written(path):
        spec, state = _stored(path, weights)
        encoder = encoder_like(spec)
        encoder.load_state_dict(state)
    return encoder.eval()


def encoder_like(spec: dict[str, Any]) -> Encoder:
    """The network that `Encoder.spec` describes; its weights are yet to be loaded."""
    return Encoder(spec["backbone"], _image(spec))


def init_encoder(encoder: Encoder, path: str | Path) -> None:
    """Copy an earlier stage's encoder, normalisation included, into `encoder`.

    Raises:
        UslError: another backbone, or any weight is missing, unexpected, or of another shape; nothing is
            copied then.
    """
    spec, state = _stored(path, "online")
    with as_written(path):
        image = _image(spec)
    own = encoder.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    # Weights of the same names and shapes can be those of another network (`small`, `small_s2`).
    backbone = str(spec.get("backbone"))
    if not wrong and _architecture(backbone) != _architecture(encoder.backbone):
        wrong = ["the backbone"]
    if wrong:
        names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UslError(
            f"model.init_from: {path} holds the encoder '{backbone}' for {image.channels}-channel "
            f"images, this model has '{encoder.backbone}' for {encoder.image.channels}; they differ in {names}"
        )
    encoder.load_state_dict(state)


def compile_encoders(model: nn.Module) -> None:
    """Let `torch.compile` fuse the networks of all encoders in `model`, in place: names of weights stay."""
    for module in model.modules():
        if isinstance(module, Encoder):
            module.net.compile()


def recompute_encoders(model: nn.Module) -> None:
    """Let all encoders in `model` compute their activations again in the backward pass, to save memory.

    Raises:
        UslError: a network is no sequence of blocks.
    """
    for module in model.modules():
        if isinstance(module, Encoder):
            if not blocks_of(module.net):
                raise UslError(f"activation_checkpointing: '{module.backbone}' is made of no blocks; leave it out")
            module.recompute = True


def _architecture(backbone: str) -> str:
    """The name without timm's tag of the weights: `resnet18.a1_in1k` is a `resnet18`."""
    return backbone.partition(".")[0]
