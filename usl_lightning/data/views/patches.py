"""Pieces of images, for tasks that put them together again."""

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import Key


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
