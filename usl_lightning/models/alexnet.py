"""AlexNet with batch norm, without its fully connected layers, in the two sizes that SeLa compares."""

import torch
from torch import Tensor, nn

from usl_lightning.base.errors import UslError

SMALLEST = 63
"""Pixels a side below which nothing is left to pool."""


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class AlexNet(nn.Module):
    """Five convolutions and three poolings, each convolution with batch norm (SeLa: Asano et al., 2020, §4.2).

    Images of 224 pixels leave maps of 6×6; those of other sizes are averaged to that.

    Args:
        channels: input channels.
        filters: of the five convolutions. The default, 96 and 256 first, is Krizhevsky et al. (2012); SeLa's
            smaller variant, with 64 and 192, is Krizhevsky (2014): (64, 192, 384, 256, 256).
    """

    def __init__(self, channels: int, filters: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)) -> None:
        super().__init__()
        a, b, c, d, e = filters
        self.layers = nn.Sequential(
            *_convolution(channels, a, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            *_convolution(a, b, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *_convolution(b, c, 3),
            *_convolution(c, d, 3),
            *_convolution(d, e, 3),
            nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d(6),
        )
        self.feature_dim, self.smallest_side = e * 6 * 6, SMALLEST
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> features [b, 9216].

        Raises:
            UslError: images of less than 63 pixels a side, as a view may make them.
        """
        if min(x.shape[-2:]) < SMALLEST:
            raise UslError(
                f"model.backbone: AlexNet needs images of {SMALLEST} pixels a side or more, these have "
                f"{x.shape[-2]}×{x.shape[-1]}; enlarge them with --data.image_size 224"
            )
        return torch.flatten(self.layers(x), 1)
