"""The steps recipes for views are made of.

A step takes uint8 images [b, c, h, w] and a key with one slot an image, draws each sample's parameters from the key
and returns uint8 images. The operations themselves are in `usl_lightning.data.views.ops`.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranged, Ranges, above, at_least, rising, whole, within
from usl_lightning.data.keys import Key
from usl_lightning.data.views import ops, warps
from usl_lightning.data.views.pixels import on_samples

Edges = Literal["clipped", "pillow"]


class Step(Ranged, nn.Module, ABC):
    """One step of a recipe: uint8 images [b, c, h, w] and a key of b slots to uint8 images.

    Attributes:
        revision: of the mathematics; raised in the body of a step that changes, see `models/method.py`.
    """

    revision: int = 1

    @abstractmethod
    def forward(self, images: Tensor, key: Key) -> Tensor:
        """The images after this step; one without randomness ignores the key."""


class FlipTranslate(Step):
    """Mirror with probability 1/2, then move by whole pixels up to a share of the side, with reflection.

    Args:
        flip: whether to mirror at all (not for digits or letters).
        translate: the largest move in either direction, as a share of the side; 0.125 is 4 pixels of 32.
    """

    ranges: ClassVar[Ranges] = {"translate": within(0, 1)}

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

    ranges: ClassVar[Ranges] = {"size": whole(1), "scale": rising(above(0, up_to=1)), "ratio": rising(above(0))}

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

    ranges: ClassVar[Ranges] = {"degrees": at_least(0)}

    def __init__(self, degrees: float = 15.0) -> None:
        super().__init__()
        self.degrees = degrees

    def forward(self, images: Tensor, key: Key) -> Tensor:
        return ops.rotate(images, key.uniform(1, -self.degrees, self.degrees)[:, 0])


class TurnScaleMove(Step):
    """Turn, enlarge and move, mirrored at the edges (Dosovitskiy et al., 2014, §2.1).

    Args:
        degrees: the largest turn either way.
        scale: smallest and largest, log-uniform.
        translate: the largest move in either direction, as a share of the side.
    """

    ranges: ClassVar[Ranges] = {"degrees": at_least(0), "scale": rising(above(0)), "translate": within(0, 1)}

    def __init__(self, degrees: float = 20.0, scale: tuple[float, float] = (0.7, 1.4), translate: float = 0.2) -> None:
        super().__init__()
        self.degrees, self.scale, self.translate = degrees, scale, translate

    def forward(self, images: Tensor, key: Key) -> Tensor:
        degrees = key.fold("degrees").uniform(1, -self.degrees, self.degrees)[:, 0]
        scale = key.fold("scale").uniform(1, *map(math.log, self.scale)).exp()[:, 0]
        down, right = key.fold("move").uniform(2, -self.translate, self.translate).unbind(1)
        return warps.turn_scale_move(images, degrees, scale, down, right)


class ColorPowers(Step):
    """Exemplar-CNN's colours (Dosovitskiy et al., 2014, §2.1), the same for all pixels of an image.

    Along each principal component of colours the contrast is multiplied; saturation and value are raised to a power,
    multiplied and moved; the hue is turned. All but moves and turns are log-uniform.

    Args:
        contrast: the largest factor, the smallest is its inverse.
        power: the largest, the smallest is its inverse.
        factor: likewise.
        offset, hue: the largest either way, of a scale from 0 to 1.
    """

    ranges: ClassVar[Ranges] = {
        "contrast": at_least(1),
        "power": at_least(1),
        "factor": at_least(1),
        "offset": within(0, 1),
        "hue": within(0, 0.5),
    }

    def __init__(
        self, contrast: float = 2.0, power: float = 4.0, factor: float = 1.4, offset: float = 0.1, hue: float = 0.1
    ) -> None:
        super().__init__()
        self.contrast, self.power, self.factor, self.offset, self.hue = contrast, power, factor, offset, hue

    def forward(self, images: Tensor, key: Key) -> Tensor:
        def up_to(name: str, n: int, most: float) -> Tensor:
            return key.fold(name).uniform(n, -math.log(most), math.log(most)).exp()

        images = ops.adjust_components(images, up_to("contrast", 3, self.contrast))
        offsets = key.fold("offset").uniform(2, -self.offset, self.offset)
        shift = key.fold("hue").uniform(1, -self.hue, self.hue)[:, 0]
        return ops.adjust_powers(images, up_to("power", 2, self.power), up_to("factor", 2, self.factor), offsets, shift)


class ColorJitter(Step):
    """Brightness, contrast, saturation and hue in random order, with probability p (as torchvision's).

    Args:
        brightness, contrast, saturation: the factor is uniform in [max(0, 1 − x), 1 + x].
        hue: the shift is uniform in [−x, x] of a turn, x ≤ 0.5.
        p: probability that a sample is jittered at all.

    Images of one channel get brightness and contrast only.
    """

    ranges: ClassVar[Ranges] = {
        "brightness": at_least(0),
        "contrast": at_least(0),
        "saturation": at_least(0),
        "hue": within(0, 0.5),
        "p": within(0, 1),
    }

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
        brightness = self.factor(key.fold("brightness"), self.brightness)
        contrast = self.factor(key.fold("contrast"), self.contrast)
        saturation = self.factor(key.fold("saturation"), self.saturation)
        hue = key.fold("hue").uniform(1, -self.hue, self.hue)[:, 0]
        order = key.fold("order").order(4)
        order = torch.where(key.fold("apply").chance(self.p)[:, None], order, -1)
        return ops.color_jitter(images, brightness, contrast, saturation, hue, order)

    @staticmethod
    def factor(key: Key, amount: float) -> Tensor:
        """Uniform in [max(0, 1 − amount), 1 + amount], float32 [b]."""
        return key.uniform(1, max(0.0, 1 - amount), 1 + amount)[:, 0]


class Greyscale(Step):
    """Luminance in all channels, with probability p."""

    ranges: ClassVar[Ranges] = {"p": within(0, 1)}

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor, key: Key) -> Tensor:
        if images.shape[1] == 1:
            return images
        return on_samples(images, key.chance(self.p), ops.greyscale)


class Solarize(Step):
    """Pixels from half the scale on are inverted, with probability p (Grill et al., 2020, appendix B)."""

    ranges: ClassVar[Ranges] = {"p": within(0, 1)}

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor, key: Key) -> Tensor:
        return on_samples(images, key.chance(self.p), _solarized)


def _solarized(images: Tensor) -> Tensor:
    return ops.solarize(images, torch.full((len(images),), 128.0, device=images.device))


class GaussianBlur(Step):
    """Gaussian blur with probability p.

    Args:
        p: probability.
        sigma: smallest and largest standard deviation in pixels, uniform.
        kernel: number of taps, odd, less than twice the shorter side; None is a tenth of that side, made odd, or 3 if
            that is less (SimCLR).
    """

    ranges: ClassVar[Ranges] = {"p": within(0, 1), "sigma": rising(above(0)), "kernel": whole(1, odd=True)}

    def __init__(self, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0), kernel: int | None = None) -> None:
        super().__init__()
        self.p = p
        self.sigma = sigma
        self.kernel = kernel

    def forward(self, images: Tensor, key: Key) -> Tensor:
        kernel = self.taps(min(images.shape[-2:]))
        sigma = key.fold("sigma").uniform(1, *self.sigma)[:, 0]
        return on_samples(images, key.fold("apply").chance(self.p), lambda x, s: ops.gaussian_blur(x, s, kernel), sigma)

    def taps(self, side: int) -> int:
        """How many there are for images of this shorter side.

        Raises:
            UslError: more than the image has with its mirror image.
        """
        kernel = warps.odd_kernel(0.1, side) if self.kernel is None else self.kernel
        if self.kernel is not None and kernel > 2 * side - 1:
            raise UslError(
                f"GaussianBlur.kernel: {kernel} taps for images whose shorter side has {side} pixels; "
                f"use at most {2 * side - 1}"
            )
        return kernel


class Cutout(Step):
    """Paint a square about a uniformly drawn centre.

    Edges:
        clipped: half of the side, in whole pixels, to each side of a pixel, clipped at all edges of the image, as in
            the code of FixMatch's authors, and in SCAN's and CoMatch's. A side of 16 paints 16.
        pillow: about any point; moved inside at the upper and left edge, clipped at the others, its far row and column
            included, as in FixMatch's PyTorch re-implementations, which draw a rectangle of Pillow. 16 paint 17.

    Args:
        size: side of the square as a share of the images' shorter side, rounded down to whole pixels; 0 for none.
        random_size: draw the side uniformly: whole pixels from 1 to that (clipped), any length below it (pillow).
        fill: 0 to 255, one number for every channel or one a channel.
        edges: "clipped" or "pillow".
    """

    ranges: ClassVar[Ranges] = {"size": within(0, 1), "fill": within(0, 255)}
    revision: int = 2

    def __init__(
        self,
        size: float = 0.5,
        random_size: bool = False,
        fill: tuple[float, ...] = (127.0,),
        edges: Edges = "clipped",
    ) -> None:
        super().__init__()
        self.size = size
        self.random_size = random_size
        self.fill = fill
        self.edges = edges

    def forward(self, images: Tensor, key: Key) -> Tensor:
        if self.size == 0:
            return images
        h, w = images.shape[-2:]
        center, side = key.fold("center").uniform(2), self.side(key, min(h, w))
        top, bottom = self.span(center[:, 0] * h, side, h)
        left, right = self.span(center[:, 1] * w, side, w)
        return ops.cutout(images, top, left, bottom, right, self.fill)

    def side(self, key: Key, shorter: int) -> Tensor:
        """Sides of the squares in pixels, float32 [b]."""
        drawn, most = key.fold("size").uniform()[:, 0], self.size * shorter
        if not self.random_size:
            return torch.full_like(drawn, math.floor(most))
        return drawn * most if self.edges == "pillow" else 1 + (drawn * math.floor(most)).floor()

    def span(self, center: Tensor, side: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first row or column that is painted and one past the last, int64 [b] each, of `length`."""
        if self.edges == "pillow":
            first, last = warps.half_open_box(center, side, length)
            return first, (last + 1).clamp(max=length)
        middle, half = center.long(), side.long() // 2
        return (middle - half).clamp(min=0), (middle + half).clamp(max=length)


class Resize(Step):
    """Resize the shorter side to `resize` pixels and cut the central square of `size`."""

    ranges: ClassVar[Ranges] = {"size": whole(1), "resize": whole(1)}

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
