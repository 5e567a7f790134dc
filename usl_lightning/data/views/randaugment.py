"""RandAugment as FixMatch and its descendants use it."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from usl_lightning.base.ranges import Ranges, at_least, whole, within
from usl_lightning.data.keys import Key
from usl_lightning.data.views import ops, warps
from usl_lightning.data.views.pixels import on_samples, switch
from usl_lightning.data.views.steps import Step

Dialect = Literal["default", "fixmatch", "torchssl", "comatch"]

# FixMatch's pool (Sohn et al., 2020, Table 12), those that move pixels last.
POOL = (
    "identity",
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "posterize",
    "sharpness",
    "solarize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_FIRST_GEOMETRIC = POOL.index("rotate")

# What each operation that does not move pixels does with (images, factor, bits, threshold), in POOL's order.
_VALUE_OPERATIONS = (
    None,
    lambda x, factor, bits, threshold: ops.autocontrast(x),
    lambda x, factor, bits, threshold: ops.adjust_brightness(x, factor),
    lambda x, factor, bits, threshold: ops.adjust_saturation(x, factor),
    lambda x, factor, bits, threshold: ops.adjust_contrast(x, factor),
    lambda x, factor, bits, threshold: ops.equalize(x),
    lambda x, factor, bits, threshold: ops.posterize(x, bits),
    lambda x, factor, bits, threshold: ops.adjust_sharpness(x, factor),
    lambda x, factor, bits, threshold: ops.solarize(x, threshold),
)


class RandAugment(Step):
    """Operations drawn from FixMatch's pool of 14, with replacement, each with its own random magnitude.

    Ranges (Sohn et al., 2020, appendix on augmentation): brightness, colour, contrast, sharpness [0.05, 0.95];
    posterize 4 to 8 bits; rotate ±30°; shear ±0.3; solarize threshold 0 to 256; translate ±0.3 of the side.

    Dialects:
        default: magnitudes uniform over the ranges (posterize: whole bits 4 to 8, equally likely).
        fixmatch: a level of 1 to 9 tenths of the range with a random sign, as in the PyTorch code most papers
            ran; posterize 4 to 7 bits, solarize 256 − level·25.6, translation truncated to whole pixels.
        torchssl: uniform over the ranges; posterize truncated, so 4 to 7 bits.
        comatch: always the largest magnitude, with a random sign, as in CoMatch's code: factors of 1.9, posterize 4
            bits, solarize at 256, which changes nothing. (That code interpolates moves and uncovers grey.)

    Consecutive operations that move pixels read them once. Their uncovered parts are black. On one channel
    `color` does nothing.

    Args:
        num_ops: operations drawn for each sample.
        p: probability of each of them being applied.
        dialect: how magnitudes are drawn.
        max_shear, max_translate: the ends of those two ranges.
    """

    ranges: ClassVar[Ranges] = {
        "num_ops": whole(1),
        "p": within(0, 1),
        "max_shear": at_least(0),
        "max_translate": within(0, 1),
    }

    def __init__(
        self,
        num_ops: int = 2,
        p: float = 1.0,
        dialect: Dialect = "default",
        max_shear: float = 0.3,
        max_translate: float = 0.3,
    ) -> None:
        super().__init__()
        self.num_ops = num_ops
        self.p = p
        self.dialect = dialect
        self.max_shear = max_shear
        self.max_translate = max_translate

    def operations(self, key: Key) -> Tensor:
        """Which operations, int64 [b, num_ops], as positions in `POOL`; 0, identity, where not applied."""
        drawn = key.fold("operation").integers(self.num_ops, len(POOL))
        if self.p >= 1:
            return drawn
        return torch.where(key.fold("apply").uniform(self.num_ops) < self.p, drawn, 0)

    def magnitudes(self, key: Key) -> tuple[Tensor, Tensor]:
        """Unsigned in [0, 1] and signed in [−1, 1], float64 [b, num_ops] each."""
        if self.dialect == "fixmatch":
            level = (key.fold("level").integers(self.num_ops, 9) + 1).double() / 10
            sign = key.fold("sign").integers(self.num_ops, 2) * 2 - 1
            return level, level * sign
        if self.dialect == "comatch":
            sign = key.fold("sign").integers(self.num_ops, 2) * 2 - 1
            return torch.ones_like(sign, dtype=torch.float64), sign.double()
        unsigned = key.fold("level").uniform(self.num_ops).double()
        return unsigned, 2 * unsigned - 1

    def forward(self, images: Tensor, key: Key) -> Tensor:
        operations = self.operations(key)
        unsigned, signed = self.magnitudes(key)
        waiting: list[Tensor] = []  # matrices of moves not yet made; identity where a sample has none
        moved = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for turn in range(self.num_ops):
            operation, magnitude = operations[:, turn], unsigned[:, turn]
            due = moved & (operation < _FIRST_GEOMETRIC)
            images = _move(images, due, waiting)
            waiting = [torch.where(due[:, None], warps.affine_matrix(matrix), matrix) for matrix in waiting]
            images = switch(images, operation, _VALUE_OPERATIONS, *self.value_parameters(magnitude))
            waiting.append(self.matrix(operation, signed[:, turn], *images.shape[-2:]))
            moved = (moved & ~due) | (operation >= _FIRST_GEOMETRIC)
        return _move(images, moved, waiting)

    def value_parameters(self, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """factor, bits and threshold of the operations on values, [b] each, of magnitudes in [0, 1]."""
        comatch = self.dialect == "comatch"
        factor = 0.1 + 1.8 * magnitude if comatch else 0.05 + 0.9 * magnitude
        bits = 4 * magnitude if comatch else 4 + magnitude * (5 if self.dialect == "default" else 4)
        threshold = 256 - (256 * magnitude).floor() if self.dialect == "fixmatch" else 256 * magnitude
        return factor.to(torch.float32), bits.floor().long(), threshold.to(torch.float32)

    def matrix(self, operation: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
        """The moves as matrices, float64 [b, 6], of magnitudes in [−1, 1]; identity for the other operations."""

        def amount(name: str, most: float) -> Tensor:
            return torch.where(operation == POOL.index(name), magnitude * most, 0.0)

        right, down = (
            amount("translate_x", self.max_translate * width),
            amount("translate_y", self.max_translate * height),
        )
        if self.dialect == "fixmatch":
            right, down = right.trunc(), down.trunc()
        moves = warps.affine_matrix(
            operation,
            shear_x=amount("shear_x", self.max_shear),
            shear_y=amount("shear_y", self.max_shear),
            right=right,
            down=down,
        )
        turns = warps.rotation(magnitude * 30, height, width)
        return torch.where((operation == POOL.index("rotate"))[:, None], turns, moves)


def _move(images: Tensor, due: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The affine steps `matrices` (float64 [b, 6] each) for the samples that are due (bool [b])."""
    if not matrices:
        return images
    return on_samples(images, due, lambda x, *steps: warps.affine(x, steps), *matrices)
