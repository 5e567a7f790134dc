"""A small residual network for images from 8×8 to 32×32 pixels."""

from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "none"]


def _norm(norm: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


class _Block(nn.Module):
    """Two 3×3 convolutions beside a (strided) 1×1 shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
        self.norm2 = _norm(norm, outputs)
        self.act = nn.ReLU(inplace=True)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=bias), _norm(norm, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, outputs, h/stride, w/stride]."""
        out = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(out + self.shortcut(x))


class SmallNet(nn.Module):
    """Three residual stages; the last map is pooled to `grid`×`grid` and flattened.

    Small pictures differ by *where* the ink is, which a global average forgets: keeping a coarse grid is
    what lets features beat raw pixels there.

    Args:
        channels: input channels.
        width: channels of the first stage; the others have 2× and 4×.
        grid: side of the pooled map. The feature dimension is 4·width·grid².
        norm: "batch", or "none" for networks whose output for an image does not depend on the batch.
        stem_stride: 2 halves the map at once, which costs a quarter; for images of 28 pixels and more.
    """

    def __init__(
        self, channels: int, width: int = 32, grid: int = 2, norm: Norm = "batch", stem_stride: int = 1
    ) -> None:
        super().__init__()
        self.feature_dim, self.output_stride = 4 * width * grid * grid, 4 * stem_stride
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stem_stride, 1, bias=norm == "none"),
            _norm(norm, width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            _Block(width, width, 1, norm),
            _Block(width, 2 * width, 2, norm),
            _Block(2 * width, 4 * width, 2, norm),
        )
        self.pool = nn.AdaptiveAvgPool2d(grid)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> features [b, 4·width·grid²]."""
        return self.pool(self.stages(self.stem(x))).flatten(1)
