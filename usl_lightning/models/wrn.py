"""Wide residual networks exactly as FixMatch uses them (Zagoruyko & Komodakis, 2016; Sohn et al., 2020).

And as re-implementations in PyTorch do: another network, whose features of the same weights differ by 40% of their
spread.
"""

import torch
from torch import Tensor, nn


def _bn(channels: int, eps: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=eps, momentum=1e-3)  # TensorFlow's momentum 0.999 is PyTorch's 0.001


def _act() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.1, inplace=True)


class _Block(nn.Module):
    """Pre-activation block. `activate_before`: the shortcut too starts from the activated input; `raw`: neither."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activate_before: bool, *, raw: bool = False, eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.activate_before = activate_before
        self.bn1: nn.Module = nn.Identity() if raw else _bn(inputs, eps)
        self.act1: nn.Module = nn.Identity() if raw else _act()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.act2 = _bn(outputs, eps), _act()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = inputs != outputs or stride > 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, outputs, h/stride, w/stride]."""
        activated = self.act1(self.bn1(x))
        residual = self.conv2(self.act2(self.bn2(self.conv1(activated))))
        kept = activated if self.activate_before else x
        return residual + (kept if self.shortcut is None else self.shortcut(kept))


class WideResNet(nn.Module):
    """WRN-depth-width without its classifier.

    Args:
        channels: input channels.
        depth: 6·n + 4 layers with three groups of n blocks (28), 8·n + 5 with four (37).
        width: multiplies 16, 32, 64 (, 128).
        groups: 3, or 4 for the WRN-37-2 of STL-10, which halves its maps once more.
        raw: the groups after the first begin with a block whose first convolution sees its input as it is, without norm
            and activation, as in kekmodel's FixMatch, which the USL paper ran, and in TorchSSL.
        eps: of the norms; 1e-3 as FixMatch's authors and TorchSSL, 1e-5 as kekmodel.
        first_stride: of the first group; 1 as FixMatch's authors, 2 as TorchSSL and USB on STL-10.
    """

    def __init__(
        self,
        channels: int,
        depth: int = 28,
        width: int = 2,
        groups: int = 3,
        *,
        raw: bool = False,
        eps: float = 1e-3,
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - (4 if groups == 3 else 5), 2 * groups)
        if rest:
            raise ValueError(f"a wide residual network of {groups} groups cannot have {depth} layers")
        widths = [16] + [16 * width * 2**group for group in range(groups)]
        layers: list[nn.Module] = []
        for group in range(groups):
            for block in range(blocks):
                begins, outputs = block == 0, widths[group + 1]
                inputs, stride = (widths[group], 2 if group else first_stride) if begins else (outputs, 1)
                layers.append(
                    _Block(inputs, outputs, stride, begins and not group, raw=raw and begins and group > 0, eps=eps)
                )
        self.feature_dim, self.output_stride = widths[-1], first_stride * 2 ** (groups - 1)
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*layers)
        self.bn, self.act = _bn(self.feature_dim, eps), _act()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> features [b, 64·width] (128·width with four groups)."""
        maps = self.act(self.bn(self.blocks(self.stem(x))))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(maps, 1), 1)
