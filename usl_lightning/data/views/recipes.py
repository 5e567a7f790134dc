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
        - class_path: usl_lightning.data.views.steps.FlipTranslate
        - class_path: usl_lightning.data.views.steps.Greyscale
          init_args: {p: 0.2}
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranged, Ranges, above, at_least, rising, whole, within
from usl_lightning.data.keys import Key
from usl_lightning.data.views import ops
from usl_lightning.data.views.randaugment import Dialect, RandAugment
from usl_lightning.data.views.steps import (
    ColorJitter,
    ColorPowers,
    Cutout,
    Edges,
    FlipTranslate,
    GaussianBlur,
    Greyscale,
    RandomResizedCrop,
    Resize,
    Rotate,
    Solarize,
    Step,
    TurnScaleMove,
)


class Recipe(Ranged, nn.Module):
    """A view made of steps, applied in order.

    Args:
        steps: the steps; they may be any modules called as `step(images, key)`.

    Attributes:
        revision: of the mathematics; raised in the body of a recipe that changes, see `models/method.py`.
    """

    revision: int = 1

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
            raise ValueError(f"a view got {len(images)} images and {len(key)} keys; expected one key an image")
        images = images.contiguous()
        for position, step in enumerate(self.steps):
            images = step(images, key.fold(position, type(step).__name__))
        return ops.to_float(images)


class Evaluation(Recipe):
    """The image itself, as float32; resized and cut to a central square when a size is given.

    Args:
        size: side of the result in pixels; None leaves the images as they are.
        resize: what the shorter side is resized to first; None is size / 0.875 (224 from 256, as on ImageNet).
    """

    ranges: ClassVar[Ranges] = {"size": whole(1), "resize": whole(1)}

    def __init__(self, size: int | None = None, resize: int | None = None) -> None:
        super().__init__([] if size is None else [Resize(size, round(size / 0.875) if resize is None else resize)])


class Weak(Recipe):
    """FixMatch's weak view (Sohn et al., 2020, §2.3): mirror and move by up to 12.5%, with reflection.

    Args:
        flip: whether to mirror (not for digits or letters).
        translate: the largest move, as a share of the side.
    """

    ranges: ClassVar[Ranges] = {"translate": within(0, 1)}

    def __init__(self, flip: bool = True, translate: float = 0.125) -> None:
        super().__init__([FlipTranslate(flip, translate)])


class FixMatchStrong(Recipe):
    """FixMatch's strong view (Sohn et al., 2020): the weak view, RandAugment, Cutout.

    Dialects (see `RandAugment` for the magnitudes):
        default: 2 operations, each applied; Cutout of half the side.
        fixmatch: 2 operations, each applied with probability 1/2; Cutout of half the side.
        torchssl: 3 operations, each applied; Cutout of a side uniform in 0 to half.
        comatch: as `fixmatch`, with the largest magnitudes always, moves by 10 of 32 pixels: CoMatch's first view.

    Cutout paints grey as the published codes do: (127, 127, 127), in `torchssl` (125, 123, 114), in `comatch` 128; and
    the square that they do: in `fixmatch` and `torchssl` a rectangle of Pillow, 17 pixels where 16 are named.

    Args:
        dialect: which of the published variants.
        flip: whether to mirror (not for digits or letters).
        translate: the largest move of the weak part, as a share of the side.
        cutout: side of the painted square as a share of the side; 0 for none.
        edges: how the square is drawn: as the code of the dialect does, or one way of `Cutout`; clipped is the paper's.
    """

    ranges: ClassVar[Ranges] = {"translate": within(0, 1), "cutout": within(0, 1)}

    def __init__(
        self,
        dialect: Dialect = "default",
        flip: bool = True,
        translate: float = 0.125,
        cutout: float = 0.5,
        edges: Literal["dialect", "clipped", "pillow"] = "dialect",
    ) -> None:
        num_ops, p, max_translate, fill = {
            "default": (2, 1.0, 0.3, (127.0,)),
            "fixmatch": (2, 0.5, 0.3, (127.0,)),
            "torchssl": (3, 1.0, 0.3, (125.0, 123.0, 114.0)),
            "comatch": (2, 0.5, 10 / 32, (128.0,)),
        }[dialect]
        own: Edges = "pillow" if dialect in ("fixmatch", "torchssl") else "clipped"
        super().__init__(
            [
                FlipTranslate(flip, translate),
                RandAugment(num_ops, p, dialect, max_translate=max_translate),
                Cutout(cutout, dialect == "torchssl", fill, edges=own if edges == "dialect" else edges),
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

    ranges: ClassVar[Ranges] = {
        "size": whole(1),
        "scale": rising(above(0, up_to=1)),
        "strength": within(0, 2.5),
        "blur": within(0, 1),
    }

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


class _BlurOf13(GaussianBlur):
    """Of 13 taps, or as many as fit images of less than 7 pixels."""

    def taps(self, side: int) -> int:
        return min(13, 2 * side - 1)


class MoCoV2View(Recipe):
    """MoCo v2's view (Chen et al., 2020b, §3): crop, mirror, jitter, grey, blur.

    Args:
        size: side of the result; None keeps the images' size.
        scale: share of the area cropped, smallest and largest.
        blur: probability of the blur (σ uniform in 0.1 to 2 pixels, 13 taps; CIFAR 0).
        flip: whether to mirror.
    """

    ranges: ClassVar[Ranges] = {"size": whole(1), "scale": rising(above(0, up_to=1)), "blur": within(0, 1)}

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.2, 1.0),
        blur: float = 0.5,
        flip: bool = True,
    ) -> None:
        super().__init__(
            [
                RandomResizedCrop(size, scale, flip=flip),
                ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
                Greyscale(p=0.2),
                *([_BlurOf13(blur)] if blur > 0 else []),
            ]
        )


class BYOLView(Recipe):
    """BYOL's view (Grill et al., 2020, appendix B): crop, mirror, jitter, grey, blur, solarise.

    Args:
        size: side of the result; None keeps the images' size.
        scale: share of the area cropped, smallest and largest.
        blur: probability of the blur: 1 in the paper's first view, 0.1 in its second.
        solarize: probability of solarisation: 0 in the first, 0.2 in the second.
        flip: whether to mirror.
    """

    ranges: ClassVar[Ranges] = {
        "size": whole(1),
        "scale": rising(above(0, up_to=1)),
        "blur": within(0, 1),
        "solarize": within(0, 1),
    }

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        blur: float = 1.0,
        solarize: float = 0.0,
        flip: bool = True,
    ) -> None:
        super().__init__(
            [
                RandomResizedCrop(size, scale, flip=flip),
                ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
                Greyscale(p=0.2),
                *([GaussianBlur(blur)] if blur > 0 else []),
                *([Solarize(solarize)] if solarize > 0 else []),
            ]
        )


class SimSiamView(MoCoV2View):
    """SimSiam's view (Chen and He, 2021, §4): MoCo v2's; on CIFAR (its appendix D) without blur: `blur: 0`."""


class SeLaView(Recipe):
    """SeLa's view (Asano et al., 2020, appendix A, and its code): crop, jitter on every sample, grey, mirror.

    Args:
        size: side of the result; None keeps the images' size.
        scale: share of the area cropped, smallest and largest.
        flip: whether to mirror.
    """

    ranges: ClassVar[Ranges] = {"size": whole(1), "scale": rising(above(0, up_to=1))}

    def __init__(self, size: int | None = None, scale: tuple[float, float] = (0.2, 1.0), flip: bool = True) -> None:
        super().__init__(
            [
                RandomResizedCrop(size, scale, flip=flip),
                ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0),
                Greyscale(p=0.2),
            ]
        )


class ExemplarView(Recipe):
    """Exemplar-CNN's view (Dosovitskiy et al., 2014, §2.1): turned, enlarged, moved, and of other colours.

    Args:
        degrees: the largest turn either way.
        scale: smallest and largest.
        translate: the largest move, as a share of the side.
    """

    ranges: ClassVar[Ranges] = {"degrees": at_least(0), "scale": rising(above(0)), "translate": within(0, 1)}

    def __init__(self, degrees: float = 20.0, scale: tuple[float, float] = (0.7, 1.4), translate: float = 0.2) -> None:
        super().__init__([TurnScaleMove(degrees, scale, translate), ColorPowers()])


class USLTView(Recipe):
    """USL-T's strong view (Wang et al., 2022, §2.3), which its code takes from SCAN (Van Gansbeke et al., 2020).

    Mirror, four operations of the pool with uniform magnitudes (shear and translation up to 0.1), a grey square of
    random size up to half the side. The code's random crop of 32 pixels from 32 moves nothing.

    Args:
        flip: whether to mirror (not for digits or letters).
        translate: the largest move along with the mirror, as a share of the side; published: 0.
        num_ops: operations drawn for each sample.
        cutout: largest side of the painted square as a share of the side; 0 for none.
    """

    ranges: ClassVar[Ranges] = {"translate": within(0, 1), "num_ops": whole(1), "cutout": within(0, 1)}

    revision: int = 2

    def __init__(self, flip: bool = True, translate: float = 0.0, num_ops: int = 4, cutout: float = 0.5) -> None:
        super().__init__(
            [
                FlipTranslate(flip, translate),
                RandAugment(num_ops, 1.0, "torchssl", max_shear=0.1, max_translate=0.1),
                Cutout(cutout, random_size=True, fill=(125.0, 123.0, 114.0)),
            ]
        )


class CoMatchStrong(MoCoV2View):
    """CoMatch's second strong view (Li et al., 2021, §4.1): MoCo v2's without blur.

    Its first strong view, the one with the classification loss, is `FixMatchStrong` in the dialect `comatch`.

    Args:
        size: side of the result; None keeps the images' size.
        scale: share of the area cropped, smallest and largest.
        flip: whether to mirror.
    """

    def __init__(self, size: int | None = None, scale: tuple[float, float] = (0.2, 1.0), flip: bool = True) -> None:
        super().__init__(size, scale, blur=0.0, flip=flip)


class SmallGreyView(Recipe):
    """A contrastive view for small images of one channel: turn, crop, brightness and contrast.

    With 64 to 784 pixels and no colour, SimCLR's crops from 8% of the area leave nothing to recognise. The
    defaults suit handwritten digits; clothes, as in Fashion-MNIST, may be mirrored and stand upright.

    Args:
        scale: share of the area cropped, smallest and largest.
        degrees: the largest turn either way; 0 for none.
        jitter: brightness and contrast factors are uniform in 1 ± jitter, with probability 0.8.
        flip: whether to mirror (not for digits or letters).
    """

    ranges: ClassVar[Ranges] = {"scale": rising(above(0, up_to=1)), "degrees": at_least(0), "jitter": at_least(0)}

    def __init__(
        self,
        scale: tuple[float, float] = (0.5, 1.0),
        degrees: float = 15.0,
        jitter: float = 0.4,
        flip: bool = False,
    ) -> None:
        super().__init__(
            [
                *([Rotate(degrees)] if degrees > 0 else []),
                RandomResizedCrop(None, scale, flip=flip),
                ColorJitter(jitter, jitter, 0.0, 0.0, p=0.8),
            ]
        )
