"""Wide residual networks exactly as FixMatch uses them (Zagoruyko & Komodakis, 2016; Sohn et al., 2020)."""

import torch
from torch import Tensor, nn


def _bn(channels: int) -> nn.BatchNorm2d:
    # TensorFlow's momentum 0.999 is PyTorch's 0.001; eps as in the published code.
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3)


def _act() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.1, inplace=True)


class _Block(nn.Module):
    """Pre-activation block. `activate_before`: the shortcut too starts from the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, activate_before: bool) -> None:
        super().__init__()
        self.activate_before = activate_before
        self.bn1, self.act1 = _bn(inputs), _act()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.act2 = _bn(outputs), _act()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

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
    """

    def __init__(self, channels: int, depth: int = 28, width: int = 2, groups: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - (4 if groups == 3 else 5), 2 * groups)
        if rest:
            raise ValueError(f"a wide residual network of {groups} groups cannot have {depth} layers")
        widths = [16] + [16 * width * 2**group for group in range(groups)]
        layers: list[nn.Module] = []
        for group in range(groups):
            for block in range(blocks):
                inputs = widths[group] if block == 0 else widths[group + 1]
                stride = 2 if block == 0 and group > 0 else 1
                layers.append(_Block(inputs, widths[group + 1], stride, group == 0 and block == 0))
        self.feature_dim, self.output_stride = widths[-1], 2 ** (groups - 1)
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*layers)
        self.bn, self.act = _bn(self.feature_dim), _act()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> features [b, 64·width] (128·width with four groups)."""
        maps = self.act(self.bn(self.blocks(self.stem(x))))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(maps, 1), 1)
