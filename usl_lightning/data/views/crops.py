"""Multi-crop: several views of each image, of one or of two sizes (Caron et al., 2020, §3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import Key


def multi_crop(
    images: Tensor, key: Key, views: Sequence[nn.Module], small_view: nn.Module | None = None, small_views: int = 0
) -> list[Tensor]:
    """One tensor a size, each for one pass of a network: the large views, and then the small ones if there are any.

    Args:
        images: uint8 [b, c, h, w].
        key: of the b slots; each view draws from a fold of its own.
        views: one for each large view, all of the same size.
        small_view: draws the small ones.
        small_views: how many.

    Returns:
        float32 [len(views)·b, c, h', w'], view by view, and [small_views·b, c, h'', w''].

    Raises:
        UslError: small views are larger than the large ones.
    """
    crops = [torch.cat([view(images, key.fold("view", number)) for number, view in enumerate(views)])]
    if small_view is not None and small_views:
        crops.append(torch.cat([small_view(images, key.fold("small view", number)) for number in range(small_views)]))
        large, small = (size.shape[-2:] for size in crops)
        if small[0] > large[0] or small[1] > large[1]:
            raise UslError(
                f"model.small_view: its crops have {small[0]}×{small[1]} pixels, those of model.view {large[0]}×"
                f"{large[1]}; give it a size below"
            )
    return crops
