"""The maps that a network makes on the way to its features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.recompute import blocks_of


def last_maps(encoder: Encoder, images: Tensor, levels: int) -> list[Tensor]:
    """What the last block of each size puts out, [b, c, h, w]: of the last `levels` sizes, the coarsest last.

    It is never compiled, because compiled networks tell nothing of their parts.

    Args:
        encoder: whose network is made of blocks that put out maps.
        images: [b, c, h, w], uint8 or floats in [0, 1].
        levels: at least 1.

    Raises:
        UslError: it has maps of fewer sizes.
    """
    maps = _last_of_each_size(_maps_of(encoder, images, blocks_of(encoder.net)))
    if len(maps) < levels:
        raise UslError(
            f"model.levels: {levels} of '{encoder.backbone}', whose blocks make maps of {len(maps)} sizes; use "
            "fewer, or a residual network"
        )
    return maps[-levels:]


def layer_maps(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """What the layers of a network put out, [b, c, h, w]: the last block of each size, or without blocks each ReLU.

    Empty if they put out no maps, as those of transformers. It is never compiled, see `last_maps`.

    Args:
        encoder: whose network it is.
        images: [b, c, h, w], uint8 or floats in [0, 1].
    """
    blocks = blocks_of(encoder.net)
    if blocks:
        return _last_of_each_size(_maps_of(encoder, images, blocks))
    return _maps_of(encoder, images, [part for part in encoder.net.modules() if isinstance(part, nn.ReLU)])


def _maps_of(encoder: Encoder, images: Tensor, parts: Sequence[nn.Module]) -> list[Tensor]:
    made: list[Tensor] = []

    def keep(part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            made.append(output)

    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        encoder.net.forward(encoder.normalised(images))
    finally:
        for hook in hooks:
            hook.remove()
    return made


def _last_of_each_size(maps: Sequence[Tensor]) -> list[Tensor]:
    after = [each.shape[2:] for each in maps[1:]]
    return [each for number, each in enumerate(maps) if after[number : number + 1] != [each.shape[2:]]]


@torch.no_grad()
def channels_of_maps(encoder: Encoder, levels: int) -> list[int]:
    """How many channels the maps of `last_maps` have; its networks are in evaluation mode meanwhile."""
    image, training = encoder.image, encoder.training
    maps = last_maps(encoder.eval(), torch.zeros(1, image.channels, image.height, image.width), levels)
    encoder.train(training)
    return [each.shape[1] for each in maps]
