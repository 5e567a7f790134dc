"""Operations on the values of pixels, each sample with its own parameter.

Every function takes uint8 or floating images [b, c, h, w] and returns the same shape and dtype; parameters are
[b]. uint8 follows Pillow, floats follow torchvision's float tensors (see `usl_lightning.data.views.pixels`).
"""

import torch
from torch import Tensor

from usl_lightning.data.views.pixels import luminance, per_sample, switch, to_uint8

COMPONENTS = ((-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203))
"""Principal components of the colours of ImageNet's pixels, as rows, the largest first (Krizhevsky et al., 2012)."""


def _levels(images: Tensor) -> Tensor:
    """The 256 values a byte can have, float32 [1, 1, 256]."""
    return torch.arange(256, dtype=torch.float32, device=images.device).view(1, 1, 256)


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """uint8 images through a table of new values, [b, c or 1, 256] of any dtype holding 0 to 255."""
    b, c, h, w = images.shape
    if table.dtype != torch.uint8:
        table = to_uint8(table)
    return table.expand(b, c, 256).gather(2, images.reshape(b, c, h * w).long()).view(b, c, h, w)


def _blend(degenerate: Tensor, values: Tensor, factor: Tensor, top: int) -> Tensor:
    """Pillow's `Image.blend`, unrounded: degenerate + factor·(values − degenerate), clipped to [0, top]."""
    return values.sub(degenerate).mul_(factor).add_(degenerate).clamp_(0, top)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor 0 is black, 1 the image, above 1 brighter. factor: float [b], ≥ 0."""
    factor = factor.to(torch.float32)
    if images.dtype != torch.uint8:
        return (images * per_sample(factor)).clamp_(0, 1)
    return _look_up(images, (_levels(images) * factor.view(-1, 1, 1)).clamp_(0, 255))


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey: factor 0 is that grey, 1 the image. factor: float [b], ≥ 0."""
    factor = factor.to(torch.float32)
    grey = luminance(images)
    if images.dtype != torch.uint8:
        # Whole multiples of 2^-24 sum exactly in float64, so the mean does not depend on the order of the sum.
        mean = (grey.double() * 2**24).round_().mean((1, 2, 3)).mul_(2.0**-24).to(images.dtype)
        return _blend(per_sample(mean), images, per_sample(factor), 1)
    mean = (grey.sum((1, 2, 3), dtype=torch.float64) / grey[0].numel() + 0.5).floor_().to(torch.float32)
    return _look_up(images, _blend(mean.view(-1, 1, 1), _levels(images), factor.view(-1, 1, 1), 255))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 is grey, 1 the image. One channel stays as it is. factor: float [b], ≥ 0."""
    if images.shape[1] == 1:
        return images
    whole = images.dtype == torch.uint8
    values = images.to(torch.float32) if whole else images
    out = _blend(luminance(images), values, per_sample(factor.to(torch.float32)), 255 if whole else 1)
    return to_uint8(out) if whole else out


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour wheel by `shift` of a full turn, float [b] in [-0.5, 0.5]. One channel stays as it is.

    uint8: as Pillow and torchvision's Pillow path, whose hue and saturation are bytes.
    """
    if images.shape[1] == 1:
        return images
    if images.dtype != torch.uint8:
        sixths, saturation, value = _to_hsv(images)
        hue = _wrap(sixths / 6 + shift.to(images.dtype).view(-1, 1, 1), 1)
        return _from_hsv(hue, saturation, value)
    sixths, saturation, value = _to_hsv(images.to(torch.float32))
    # Both are truncated, so products that float32 would round up to a whole number are made in double.
    hue = _wrap(sixths.div_(6), 1).double().mul_(255).floor_().to(torch.float32)
    hue.add_((shift.double() * 255).trunc().to(torch.float32).view(-1, 1, 1))
    saturation = saturation.double().mul_(255).floor_().to(torch.float32).div_(255)
    return to_uint8(_from_hsv(_wrap(hue, 256).div_(255), saturation, value).add_(0.5))


def adjust_components(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply what pixels differ by from their image's mean, along each principal component of colours.

    Args:
        images: uint8 or float; of one channel, the first factor counts.
        factors: float [b, 3], of the components, the largest first.
    """
    whole = images.dtype == torch.uint8
    values = images.to(torch.float32) if whole else images
    mean = values.mean((2, 3), keepdim=True)
    if images.shape[1] == 1:
        out = (values - mean) * per_sample(factors[:, 0])
    else:
        axes = torch.tensor(COMPONENTS, dtype=values.dtype, device=values.device)
        turned = ((values - mean)[:, None] * axes[:, :, None, None]).sum(2) * factors[:, :, None, None]
        out = (turned[:, None] * axes.T[:, :, None, None]).sum(2)
    out = (out + mean).clamp_(0, 255 if whole else 1)
    return to_uint8(out.add_(0.5)) if whole else out


def adjust_powers(images: Tensor, powers: Tensor, factors: Tensor, offsets: Tensor, shift: Tensor) -> Tensor:
    """factor·xᵖ + offset of the value and of the saturation, each in [0, 1], and a turn of the colour wheel.

    Args:
        images: uint8; of one channel, which is the value, the first of each pair counts.
        powers, factors, offsets: float [b, 2], of value and saturation.
        shift: float [b], of a full turn.
    """
    pixels = images.to(torch.float32).div_(255)

    def changed(x: Tensor, number: int) -> Tensor:
        p, factor, offset = (each[:, number].view(-1, 1, 1) for each in (powers, factors, offsets))
        return (x**p * factor + offset).clamp(0, 1)

    if images.shape[1] == 1:
        out = changed(pixels[:, 0], 0)[:, None]
    else:
        sixths, saturation, value = _to_hsv(pixels)
        hue = _wrap(sixths / 6 + shift.view(-1, 1, 1), 1)
        out = _from_hsv(hue, changed(saturation, 1), changed(value, 0))
    return to_uint8(out.mul_(255).add_(0.5).clamp_(0, 255))


def _wrap(values: Tensor, period: float) -> Tensor:
    """`values` modulo `period`, which may overwrite `values`. (`remainder` is 30 times slower on a CPU.)"""
    return values.sub_((values / period).floor_().mul_(period))


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in sixths of a turn [-1, 5], saturation in [0, 1], value on the images' scale: [b, h, w], of floats."""
    value = images.amax(1)
    chroma = value - images.amin(1)
    saturation = chroma / value.clamp(min=1e-12)
    rest = (value[:, None] - images).div_(chroma.clamp_(min=1e-12)[:, None])
    # The largest channel has 0. In double, rounded once, as Pillow does: at a whole hue the last bit decides.
    red, green, blue = rest.double().unbind(1)
    second, third = (red - blue).add_(2), (green - red).add_(4)
    sixths = torch.where(red == 0, blue - green, torch.where(green == 0, second, third))
    return sixths.to(images.dtype), saturation, value


def _from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse, [b, 3, h, w]: value minus value·saturation times a trapezoid of the hue, which is overwritten."""
    sixths = hue.mul_(6)
    red = (sixths - 3).abs_().neg_().add_(2)
    green = (sixths - 2).abs_().sub_(1)
    blue = sixths.sub_(4).abs_().sub_(1)
    less = torch.stack((red, green, blue), dim=1).clamp_(0, 1).mul_((value * saturation)[:, None])
    return less.neg_().add_(value[:, None])


def greyscale(images: Tensor) -> Tensor:
    """Luminance in every channel."""
    grey = luminance(images)
    grey = to_uint8(grey) if images.dtype == torch.uint8 else grey
    return grey.expand_as(images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel so that its darkest pixel becomes 0 and its lightest the top; flat channels stay."""
    b, c = images.shape[:2]
    flat = images.reshape(b, c, -1)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    if images.dtype != torch.uint8:
        span = torch.where(high > low, high - low, 1.0)
        low = torch.where(high > low, low, 0.0)
        return flat.sub(low).div_(span).clamp_(0, 1).view_as(images)
    # Pillow's arithmetic to the bit, because the result is truncated: `255 / tensor` would be a reciprocal first.
    lowest, span = low.double(), (high - low).double()
    scale = torch.full_like(span, 255).div_(torch.where(span > 0, span, 255.0))
    offset = torch.where(span > 0, -lowest * scale, 0.0)
    return _look_up(images, (_levels(images).double() * scale + offset).clamp_(0, 255))


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of each channel, as Pillow. Floating images go by way of 256 levels."""
    if images.dtype != torch.uint8:
        return equalize((images * 255).round_().to(torch.uint8)).to(images.dtype).div_(255)
    b, c, h, w = images.shape
    ones = torch.ones(1, 1, 1, dtype=torch.int32, device=images.device).expand(b, c, h * w)
    histogram = torch.zeros(b, c, 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, images.reshape(b, c, h * w).long(), ones)
    highest = images.reshape(b, c, h * w).amax(2, keepdim=True).long()
    step = (h * w - histogram.gather(2, highest)) // 255
    before = histogram.cumsum(2, dtype=torch.int32) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return _look_up(images, torch.where(step > 0, table, _levels(images).to(torch.int32)))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` highest of 8 bits. bits: integer [b], 0 to 8. Floating images go by way of 256 levels."""
    if images.dtype != torch.uint8:
        return posterize((images * 255).round_().to(torch.uint8), bits).to(images.dtype).div_(255)
    kept = (256 - 2 ** (8 - bits.to(torch.int32))).to(torch.uint8)
    return images & per_sample(kept)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above `threshold`, float [b], on the images' scale (0 to 256, or 0 to 1)."""
    if images.dtype != torch.uint8:
        return torch.where(images >= per_sample(threshold), 1 - images, images)
    levels = _levels(images)
    return _look_up(images, torch.where(levels < threshold.view(-1, 1, 1), levels, 255 - levels))


def invert(images: Tensor) -> Tensor:
    """The negative."""
    return 255 - images if images.dtype == torch.uint8 else 1 - images


def color_jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """Brightness, contrast, saturation and hue, in an order of each sample's own.

    Args:
        brightness, contrast, saturation: float [b], factors ≥ 0.
        hue: float [b], in turns, [-0.5, 0.5].
        order: int64 [b, n]; `order[i, r]` is which of the four (0 to 3) sample i gets in round r; any other
            number leaves it alone in that round.
    """
    branches = (
        lambda x, b, c, s, h: adjust_brightness(x, b),
        lambda x, b, c, s, h: adjust_contrast(x, c),
        lambda x, b, c, s, h: adjust_saturation(x, s),
        lambda x, b, c, s, h: adjust_hue(x, h),
    )
    for turn in range(order.shape[1]):
        images = switch(images, order[:, turn], branches, brightness, contrast, saturation, hue)
    return images
