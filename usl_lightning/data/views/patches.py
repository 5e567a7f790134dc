"""Pieces of images, for tasks that put them together again."""

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import Key
from usl_lightning.data.views.pixels import luminance


def patches(images: Tensor, key: Key, *, grid: int, size: int) -> Tensor:
    """A square of `size` pixels at a random place of each cell of a `grid`×`grid` grid.

    What is left of a cell is a gap that no line of the image crosses from one patch to the next.

    Args:
        images: [b, c, h, w].
        key: of the b slots.
        grid: cells along each side.
        size: of a patch, at most h // grid and w // grid.

    Returns:
        [b, grid², c, size, size], row by row.

    Raises:
        UslError: patches larger than the cells.
    """
    b, _, h, w = images.shape
    tall, wide = h // grid, w // grid
    if size > min(tall, wide):
        raise UslError(
            f"model.patch: {size} pixels do not fit into the cells of {tall}×{wide} that {grid}×{grid} of the views "
            "make; use fewer, or enlarge the images by data.image_size"
        )
    cells, pixels = torch.arange(grid, device=images.device), torch.arange(size, device=images.device)
    down, right = (
        key.fold(name).integers(grid * grid, side - size + 1) for name, side in (("down", tall), ("right", wide))
    )
    top = (cells * tall).repeat_interleave(grid) + down
    left = (cells * wide).repeat(grid) + right
    rows, columns = top[:, :, None, None] + pixels[:, None], left[:, :, None, None] + pixels
    samples = torch.arange(b, device=images.device).view(b, 1, 1, 1)
    return images[samples, :, rows, columns].permute(0, 1, 4, 2, 3)


def eventful_patches(images: Tensor, key: Key, *, size: int) -> Tensor:
    """A square of each image at a random place, the likelier the larger the gradients of grey values there.

    The probability is proportional to the sum of squared differences of neighbouring pixels within the square; where
    there are none at all, any place is as likely as another.

    Args:
        images: uint8 [b, c, h, w].
        key: of the b slots.
        size: of the square, at most h and w.

    Returns:
        uint8 [b, c, size, size].

    Raises:
        UslError: a square larger than the images.
    """
    b, _, h, w = images.shape
    if size > min(h, w):
        raise UslError(f"model.patch: {size} pixels of images of {h}×{w}; use fewer, or null for whole images")
    grey = luminance(images).double()
    down, right = grey.diff(dim=2).square(), grey.diff(dim=3).square()
    tall, wide = h - size + 1, w - size + 1
    gradients = torch.zeros(b, 1, tall, wide, dtype=torch.float64, device=images.device)
    if size > 1:  # a difference belongs to the squares that have both of its pixels
        gradients += F.avg_pool2d(down, (size - 1, size), 1, divisor_override=1)
        gradients += F.avg_pool2d(right, (size, size - 1), 1, divisor_override=1)
    sums = (gradients.flatten(1) + 1e-9).cumsum(1)
    drawn = key.uniform()[:, :1].double() * sums[:, -1:]
    place = torch.searchsorted(sums, drawn, right=True)[:, 0].clamp(max=tall * wide - 1)
    pixels = torch.arange(size, device=images.device)
    rows, columns = (place // wide)[:, None, None] + pixels[:, None], (place % wide)[:, None, None] + pixels
    samples = torch.arange(b, device=images.device).view(b, 1, 1)
    return images[samples, :, rows, columns].permute(0, 3, 1, 2)


def overlapping_patches(images: Tensor, *, size: int, stride: int) -> Tensor:
    """Squares of `size` pixels, each `stride` beside or below the one before.

    Args:
        images: [b, c, h, w].
        size: of a patch, at most h and w.
        stride: from one to the next.

    Returns:
        [b, rows, columns, c, size, size].

    Raises:
        UslError: patches larger than the images.
    """
    h, w = images.shape[-2:]
    if size > min(h, w):
        raise UslError(f"model.patch: {size} pixels of views of {h}×{w}; use fewer, or enlarge them")
    return images.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5)
