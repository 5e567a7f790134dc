"""Recipes for views: what a method does to an image before a network sees it.

A view is a module called as `view(images, key)`: images uint8 [b, c, h, w] (1 or 3 channels), key with one slot an
image; the result is float32 [b, c, h', w'] in [0, 1], not normalised (that belongs to the encoder). A view of an
image depends on that image and its slot alone: not on the rest of the batch, its size, or the number of processes.

A recipe is the list of the paper's steps. Each step takes and returns uint8 images, and draws its random numbers
from the recipe's key folded with the step's position and name. The recipes below are such lists; `Recipe` makes
others, in a configuration file too:

    class_path: usl_lightning.data.views.Recipe
    init_args:
      steps:
        - class_path: usl_lightning.data.views.FlipTranslate
        - class_path: usl_lightning.data.views.Greyscale
          init_args: {p: 0.2}
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from usl_lightning.data import geometry, ops
from usl_lightning.data.keys import Key
from usl_lightning.data.pixels import on_samples, switch


class Step(nn.Module):
    """One step of a recipe: uint8 images [b, c, h, w] and a key of b slots to uint8 images."""

    def forward(self, images: Tensor, key: Key) -> Tensor:
        """The images after this step; one without randomness ignores the key."""
        raise NotImplementedError


class Recipe(nn.Module):
    """A view made of steps, applied in order.

    Args:
        steps: the steps; they may be any modules called as `step(images, key)`.
    """

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, images: Tensor, key: Key) -> Tensor:
        """The view: float32 [b, c, h', w'] in [0, 1] of uint8 images [b, c, h, w] and their keys."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"a view got {images.dtype} images of shape {tuple(images.shape)}; expected uint8 [b, 1 or 3, h, w]"
            )
        if len(key) != len(images):
            raise ValueError(
                f"a view got {len(images)} images and {len(key)} keys; expected one key an image"
            )
        for position, step in enumerate(self.steps):
            images = step(images, key.fold(position, type(step).__name__))
        return ops.to_float(images)


class FlipTranslate(Step):
    """Mirror with probability 1/2, then move by whole pixels up to a share of the side, with reflection.

    Args:
        flip: whether to mirror at all (not for digits or letters).
        translate: the largest move in either direction, as a share of the side; 0.125 is 4 pixels of 32.
    """

    def __init__(self, flip: bool = True, translate: float = 0.125) -> None:
        super().__init__()
        self.flip = flip
        self.translate = translate

    def forward(self, images: Tensor, key: Key) -> Tensor:
        h, w = images.shape[-2:]
        down, right = (
            key.fold(name).integers(1, 2 * most + 1)[:, 0] - most
            for name, most in (("down", int(self.translate * h)), ("right", int(self.translate * w)))
        )
        flip = key.fold("flip").chance(0.5) if self.flip else None
        return ops.shift_and_flip(images, down, right, flip)


class RandomResizedCrop(Step):
    """A box of random area and aspect, resized to one size, mirrored with probability 1/2: one resampling.

    The box is drawn as in torchvision (Inception crop): up to ten tries for one that fits, then the largest
    central box within the ratios.

    Args:
        size: side of the result in pixels; None keeps the images' own height and width.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height, log-uniform.
        flip: whether to mirror at all.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.flip = flip

    def box(self, key: Key, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """top, left, height, width of the boxes, int64 [b] each."""
        area = h * w * key.fold("area").uniform(10, *self.scale).double()
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = key.fold("aspect").uniform(10, low, high).double().exp()
        widths = (area * aspect).sqrt().round().long()
        heights = (area / aspect).sqrt().round().long()
        fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        found = fits.gather(1, first)[:, 0]
        fallback_w = min(w, round(h * self.ratio[1]))
        fallback_h = min(h, round(w / self.ratio[0]))
        width = torch.where(found, widths.gather(1, first)[:, 0], fallback_w)
        height = torch.where(found, heights.gather(1, first)[:, 0], fallback_h)
        corner = key.fold("corner").uniform(2).double()
        top = torch.where(found, (corner[:, 0] * (h - height + 1)).long(), (h - height) // 2)
        left = torch.where(found, (corner[:, 1] * (w - width + 1)).long(), (w - width) // 2)
        return top, left, height, width

    def forward(self, images: Tensor, key: Key) -> Tensor:
        h, w = images.shape[-2:]
        flip = key.fold("flip").chance(0.5) if self.flip else None
        size = (h, w) if self.size is None else (self.size, self.size)
        return ops.resized_crop(images, *self.box(key, h, w), size, flip)


class Rotate(Step):
    """Turn about the centre by up to `degrees` either way, uniform; black where there is no image."""

    def __init__(self, degrees: float = 15.0) -> None:
        super().__init__()
        self.degrees = degrees

    def forward(self, images: Tensor, key: Key) -> Tensor:
        return ops.rotate(images, key.uniform(1, -self.degrees, self.degrees)[:, 0])


class ColorJitter(Step):
    """Brightness, contrast, saturation and hue in random order, with probability p (as torchvision's).

    Args:
        brightness, contrast, saturation: the factor is uniform in [max(0, 1 − x), 1 + x].
        hue: the shift is uniform in [−x, x] of a turn, x ≤ 0.5.
        p: probability that a sample is jittered at all.

    Images of one channel get brightness and contrast only.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        p: float = 0.8,
    ) -> None:
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = p

    def forward(self, images: Tensor, key: Key) -> Tensor:
        amounts = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        factors = [
            key.fold(name).uniform(1, max(0.0, 1 - amount), 1 + amount)[:, 0]
            for name, amount in amounts.items()
        ]
        hue = key.fold("hue").uniform(1, -self.hue, self.hue)[:, 0]
        order = key.fold("order").order(4)
        order = torch.where(key.fold("apply").chance(self.p)[:, None], order, -1)
        return ops.color_jitter(images, *factors, hue, order)


class Greyscale(Step):
    """Luminance in all channels, with probability p."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor, key: Key) -> Tensor:
        if images.shape[1] == 1:
            return images
        return on_samples(images, key.chance(self.p), ops.greyscale)


class GaussianBlur(Step):
    """Gaussian blur with probability p.

    Args:
        p: probability.
        sigma: smallest and largest standard deviation in pixels, uniform.
        kernel: number of taps (odd); None is a tenth of the shorter side, odd, at least 3 (SimCLR).
    """

    def __init__(
        self, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0), kernel: int | None = None
    ) -> None:
        super().__init__()
        self.p = p
        self.sigma = sigma
        self.kernel = kernel

    def forward(self, images: Tensor, key: Key) -> Tensor:
        side = min(images.shape[-2:])
        kernel = geometry.odd_kernel(0.1, side) if self.kernel is None else min(self.kernel, 2 * side - 1)
        sigma = key.fold("sigma").uniform(1, *self.sigma)[:, 0]
        return on_samples(
            images, key.fold("apply").chance(self.p), lambda x, s: ops.gaussian_blur(x, s, kernel), sigma
        )


class Cutout(Step):
    """Paint a square about a uniformly drawn centre, clipped at the right and lower edges.

    Args:
        size: side of the square as a share of the images' shorter side.
        random_size: draw the side uniformly from 0 (one pixel if `size` is in whole steps) up to `size`.
        fill: 0 to 255, one number for every channel or one a channel.
    """

    def __init__(
        self, size: float = 0.5, random_size: bool = False, fill: tuple[float, ...] = (127.0,)
    ) -> None:
        super().__init__()
        self.size = size
        self.random_size = random_size
        self.fill = fill

    def forward(self, images: Tensor, key: Key) -> Tensor:
        h, w = images.shape[-2:]
        center = key.fold("center").uniform(2)
        side = torch.full_like(center[:, 0], self.size * min(h, w))
        if self.random_size:
            side = side * key.fold("size").uniform()[:, 0]
        side = side.floor()
        top, bottom = geometry.half_open_box(center[:, 0] * h, side, h)
        left, right = geometry.half_open_box(center[:, 1] * w, side, w)
        return ops.cutout(images, top, left, bottom, right, self.fill)


Dialect = Literal["default", "fixmatch", "torchssl"]

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

    Consecutive operations that move pixels read them once. Their uncovered parts are black. On one channel
    `color` does nothing.

    Args:
        num_ops: operations drawn for each sample.
        p: probability of each of them being applied.
        dialect: how magnitudes are drawn.
        max_shear, max_translate: the ends of those two ranges.
    """

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
            waiting = [
                torch.where(due[:, None], geometry.affine_matrix(matrix), matrix) for matrix in waiting
            ]
            images = switch(images, operation, _VALUE_OPERATIONS, *self.value_parameters(magnitude))
            waiting.append(self.matrix(operation, signed[:, turn], *images.shape[-2:]))
            moved = (moved & ~due) | (operation >= _FIRST_GEOMETRIC)
        return _move(images, moved, waiting)

    def value_parameters(self, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """factor, bits and threshold of the operations on values, [b] each, of magnitudes in [0, 1]."""
        factor = 0.05 + 0.9 * magnitude
        bits = 4 + (magnitude * (5 if self.dialect == "default" else 4)).floor()
        threshold = 256 - (256 * magnitude).floor() if self.dialect == "fixmatch" else 256 * magnitude
        return factor.to(torch.float32), bits.long(), threshold.to(torch.float32)

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
        moves = geometry.affine_matrix(
            operation,
            shear_x=amount("shear_x", self.max_shear),
            shear_y=amount("shear_y", self.max_shear),
            right=right,
            down=down,
        )
        turns = geometry.rotation(magnitude * 30, height, width)
        return torch.where((operation == POOL.index("rotate"))[:, None], turns, moves)


def _move(images: Tensor, due: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The affine steps `matrices` (float64 [b, 6] each) for the samples that are due (bool [b])."""
    if not matrices:
        return images
    return on_samples(images, due, lambda x, *steps: geometry.affine(x, steps), *matrices)


class Resize(Step):
    """Resize the shorter side to `resize` pixels and cut the central square of `size`."""

    def __init__(self, size: int, resize: int) -> None:
        super().__init__()
        self.size = size
        self.resize = resize

    def forward(self, images: Tensor, key: Key) -> Tensor:
        h, w = images.shape[-2:]
        short = min(h, w)
        images = ops.resize(images, (int(self.resize * h / short), int(self.resize * w / short)))
        h, w = images.shape[-2:]
        top, left = round((h - self.size) / 2), round((w - self.size) / 2)
        return images[:, :, top : top + self.size, left : left + self.size]


class Evaluation(Recipe):
    """The image itself, as float32; resized and cut to a central square when a size is given.

    Args:
        size: side of the result in pixels; None leaves the images as they are.
        resize: what the shorter side is resized to first; None is size / 0.875 (224 from 256, as on ImageNet).
    """

    def __init__(self, size: int | None = None, resize: int | None = None) -> None:
        super().__init__(
            [] if size is None else [Resize(size, round(size / 0.875) if resize is None else resize)]
        )


class Weak(Recipe):
    """FixMatch's weak view (Sohn et al., 2020, §2.3): mirror and move by up to 12.5%, with reflection.

    Args:
        flip: whether to mirror (not for digits or letters).
        translate: the largest move, as a share of the side.
    """

    def __init__(self, flip: bool = True, translate: float = 0.125) -> None:
        super().__init__([FlipTranslate(flip, translate)])


class FixMatchStrong(Recipe):
    """FixMatch's strong view (Sohn et al., 2020): the weak view, RandAugment, Cutout.

    Dialects (see `RandAugment` for the magnitudes):
        default: 2 operations, each applied; Cutout of half the side.
        fixmatch: 2 operations, each applied with probability 1/2; Cutout of half the side.
        torchssl: 3 operations, each applied; Cutout of a side uniform in 0 to half.

    Cutout paints grey as the published codes do: (127, 127, 127), in `torchssl` (125, 123, 114).

    Args:
        dialect: which of the published variants.
        flip: whether to mirror (not for digits or letters).
        translate: the largest move of the weak part, as a share of the side.
        cutout: side of the painted square as a share of the side; 0 for none.
    """

    def __init__(
        self, dialect: Dialect = "default", flip: bool = True, translate: float = 0.125, cutout: float = 0.5
    ) -> None:
        torchssl = dialect == "torchssl"
        super().__init__(
            [
                FlipTranslate(flip, translate),
                RandAugment(3 if torchssl else 2, 0.5 if dialect == "fixmatch" else 1.0, dialect),
                Cutout(cutout, random_size=torchssl, fill=(125.0, 123.0, 114.0) if torchssl else (127.0,)),
            ]
        )


class SimCLRView(Recipe):
    """SimCLR's view (Chen et al., 2020, appendix A): crop, mirror, jitter, grey, blur.

    Args:
        size: side of the result; None keeps the images' size.
        scale: share of the area cropped, smallest and largest (CIFAR: (0.2, 1) is also common).
        strength: s of the colour jitter 0.8s, 0.8s, 0.8s, 0.2s (CIFAR 0.5, ImageNet 1).
        blur: probability of the blur (CIFAR 0, ImageNet 0.5).
        flip: whether to mirror.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        strength: float = 0.5,
        blur: float = 0.0,
        flip: bool = True,
    ) -> None:
        s = strength
        super().__init__(
            [
                RandomResizedCrop(size, scale, flip=flip),
                ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
                Greyscale(p=0.2),
                *([GaussianBlur(blur)] if blur > 0 else []),
            ]
        )
