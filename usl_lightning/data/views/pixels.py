"""What the image operations share: dtypes, per-sample parameters, and applying an operation to some of the samples.

Images are [b, c, h, w], c = 1 or 3, either uint8 (0 to 255) or floating (0 to 1). On uint8 an operation does
what Pillow does, rounding included; on floats it does what torchvision does to float tensors. Both are checked
in the tests. Between the steps of a recipe images are uint8, so a recipe equals the Pillow pipeline step by step.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Values worked on at a time on a CPU: 1 MiB of float32, so that intermediate results stay in its
# cache, and are not given back to the operating system and asked for again at every step.
_PIECE = 2**18

# Pillow's fixed-point weights of red, green and blue in luminance (ITU-R 601-2), over 2^16.
_LUMA = (19595.0, 38470.0, 7471.0)


def to_float(images: Tensor) -> Tensor:
    """float32 in [0, 1] of uint8 images; floating images as they are."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def to_uint8(levels: Tensor) -> Tensor:
    """uint8 of values already within [0, 255], truncated."""
    # By way of int32: the direct conversion is not vectorised on the CPU.
    return levels.to(torch.int32).to(torch.uint8)


def per_sample(values: Tensor) -> Tensor:
    """[b] as [b, 1, 1, 1], to broadcast over images."""
    return values.view(-1, 1, 1, 1)


def luminance(images: Tensor) -> Tensor:
    """Grey values [b, 1, h, w] in float32 (or the images' own floating dtype), on the scale of the images.

    uint8: whole numbers, Pillow's `convert("L")` exactly: every product and sum is below 2^24, hence exact in
    float32. Floating: torchvision's 0.2989 R + 0.587 G + 0.114 B. One channel is returned as it is.
    """
    whole = images.dtype == torch.uint8
    if images.shape[1] == 1:
        return images.to(torch.float32) if whole else images
    if not whole:
        red, green, blue = images.unbind(1)
        return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
    red, green, blue = (images[:, i].to(torch.float32).mul_(weight) for i, weight in enumerate(_LUMA))
    return red.add_(green).add_(blue).add_(32768).mul_(2.0**-16).floor_().unsqueeze(1)


def pieces(images: Tensor) -> int:
    """How many samples to work on at a time: all, but on a CPU as many as its cache holds."""
    return max(1, _PIECE // max(1, images[0].numel())) if images.device.type == "cpu" else len(images)


def switch(
    images: Tensor,
    choice: Tensor,
    branches: Sequence[Callable[..., Tensor] | None],
    *parameters: Tensor,
) -> Tensor:
    """Sample i through `branches[choice[i]]`.

    Args:
        images: [b, c, h, w].
        choice: int64 [b]; outside the range of `branches`, or None there, leaves the sample alone.
        branches: functions of (images, *parameters) that keep the shape and work on each sample by itself.
        parameters: tensors [b, ...], cut to the same samples as the images.

    On a CPU each function sees only its own samples. Elsewhere every function sees every sample and `where`
    picks, because finding the samples of a branch would make the host wait for the device.
    """
    dispatch = _switch_sorted if images.device.type == "cpu" else _switch_where
    return dispatch(images, choice, branches, parameters)


def _switch_where(
    images: Tensor,
    choice: Tensor,
    branches: Sequence[Callable[..., Tensor] | None],
    parameters: Sequence[Tensor],
) -> Tensor:
    """`switch` without asking the device which samples a branch has."""
    out = images
    for number, branch in enumerate(branches):
        if branch is not None:
            out = torch.where(per_sample(choice == number), branch(images, *parameters), out)
    return out


def _switch_sorted(
    images: Tensor,
    choice: Tensor,
    branches: Sequence[Callable[..., Tensor] | None],
    parameters: Sequence[Tensor],
) -> Tensor:
    """`switch` on the samples sorted by branch, some at a time."""
    known = torch.where((choice >= 0) & (choice < len(branches)), choice, len(branches))
    order = known.argsort(stable=True)
    ordered = [values.index_select(0, order) for values in (images, *parameters)]
    step = pieces(images)
    done = []
    start = 0
    for branch, count in zip((*branches, None), known.bincount(minlength=len(branches) + 1).tolist(), strict=True):
        end = start + count
        while start < end:
            left = end - start
            stop = end if branch is None else start + math.ceil(left / math.ceil(left / step))
            some = [values[start:stop] for values in ordered]
            done.append(some[0] if branch is None else branch(*some))
            start = stop
    return torch.cat(done).index_select(0, order.argsort())


def on_samples(images: Tensor, chosen: Tensor, function: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`function(images, *parameters)` for the samples where `chosen` (bool [b]) is true, the others unchanged."""
    return switch(images, chosen.long(), (None, function), *parameters)
