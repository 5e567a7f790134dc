"""Batched image operations: every sample of a batch with its own parameters, on the device the images are on.

Images are uint8 (0 to 255) or floating (0 to 1) tensors [b, c, h, w] with 1 or 3 channels. Nothing here draws
random numbers: `usl_lightning.data.views` does. The operations are in `color` (values of pixels) and `warps`
(places of pixels); this module has the remaining ones and names them all.
"""

import torch
from torch import Tensor

from usl_lightning.data.views.color import (
    adjust_brightness,
    adjust_components,
    adjust_contrast,
    adjust_hue,
    adjust_powers,
    adjust_saturation,
    autocontrast,
    color_jitter,
    equalize,
    greyscale,
    invert,
    posterize,
    solarize,
)
from usl_lightning.data.views.pixels import per_sample, to_float, to_uint8
from usl_lightning.data.views.warps import (
    gaussian_blur,
    horizontal_flip,
    resize,
    resized_crop,
    rotate,
    shear_x,
    shear_y,
    shift_and_flip,
    translate_x,
    translate_y,
)

__all__ = [
    "adjust_brightness",
    "adjust_components",
    "adjust_contrast",
    "adjust_hue",
    "adjust_powers",
    "adjust_saturation",
    "adjust_sharpness",
    "autocontrast",
    "color_jitter",
    "cutout",
    "equalize",
    "gaussian_blur",
    "greyscale",
    "horizontal_flip",
    "invert",
    "normalize",
    "posterize",
    "resize",
    "resized_crop",
    "rotate",
    "shear_x",
    "shear_y",
    "shift_and_flip",
    "solarize",
    "to_float",
    "translate_x",
    "translate_y",
]


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image (3×3, centre 5, others 1, over 13; edge pixels unsmoothed).

    factor: float [b], ≥ 0: 0 is smooth, 1 the image, above 1 sharper. Images smaller than 3×3 stay as they are.
    """
    h, w = images.shape[-2:]
    if h < 3 or w < 3:
        return images
    whole = images.dtype == torch.uint8
    values = (images.to(torch.float32) if whole else images).reshape(-1, h * w)
    # Over flattened rows, which keeps the inner loops long; what wraps around lands in the edge columns.
    tall = values[:, : -2 * w] + values[:, w:-w] + values[:, 2 * w :]
    total = (tall[:, :-2] + tall[:, 1:-1]).add_(tall[:, 2:]).add_(values[:, w + 1 : -w - 1], alpha=4).div_(13)
    smooth = values.clone()
    # Rounding never meets a tie: thirteenths are never halves.
    smooth[:, w + 1 : -w - 1] = total.add_(0.5).floor_() if whole else total
    values, smooth = values.view_as(images), smooth.view_as(images)
    for edge in (0, -1):
        smooth[..., edge] = values[..., edge]
    out = smooth.add_((values - smooth).mul_(per_sample(factor.to(values.dtype)))).clamp_(0, 255 if whole else 1)
    return to_uint8(out) if whole else out


def cutout(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    bottom: Tensor,
    right: Tensor,
    fill: tuple[float, ...] = (127.0,),
) -> Tensor:
    """Paint the box of rows [top, bottom) and columns [left, right), int [b] each, with `fill`.

    fill: 0 to 255, one value for all channels or one a channel; scaled by 1/255 for floating images.
    """
    c, h, w = images.shape[1:]
    y = torch.arange(h, device=images.device)
    x = torch.arange(w, device=images.device)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    box = (rows[:, :, None] & columns[:, None, :])[:, None]
    scale = 1.0 if images.dtype == torch.uint8 else 1 / 255
    if len(set(fill)) == 1:
        return images.masked_fill(box, fill[0] * scale)
    values = [torch.full((), value * scale, dtype=images.dtype, device=images.device) for value in fill]
    return torch.cat([torch.where(box, value, images[:, i : i + 1]) for i, value in enumerate(values[:c])], dim=1)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images − mean) / std per channel. images: uint8 or floating; mean, std: float [c], on the scale [0, 1]."""
    return (to_float(images) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
