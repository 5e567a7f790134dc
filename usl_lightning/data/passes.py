"""Passes over all images of a source, outside of training."""

import torch
from torch import Tensor

from usl_lightning.base.machine import cores
from usl_lightning.data.batch import Batch
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.sampling import Pass, StepLoader

_PER_THREAD, _ON_GPU = 16, 256
"""Images of 224 pixels in a batch: on a CPU what its caches can follow, on a GPU what fills it."""


def batch_that_fits(source: ImageSource, device: torch.device) -> int:
    """Images in a batch of a pass through a network of the usual size."""
    full = _ON_GPU if device.type == "cuda" else min(_ON_GPU, _PER_THREAD * torch.get_num_threads())
    return max(1, round(full * min(1, 224**2 / (source.height * source.width))))


def pass_over(
    source: ImageSource,
    images: Tensor,
    batch_size: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    first: int = 0,
    pin: bool = False,
) -> StepLoader[Batch]:
    """The batches of some images of a source, in order.

    Args:
        source: of the images; files are decoded by worker processes.
        images: int64 [m], positions in the source.
        batch_size: images in each batch but the last.
        seed: of the keys of random numbers.
        workers: processes that read files; None: the cores, 8 at most.
        first: begin with this batch.
        pin: put batches in page-locked memory, for a CUDA device.
    """
    batches = -(-len(images) // batch_size)
    asked = min(8, cores()) if workers is None else workers
    return StepLoader(
        Pass(source, source.labels, images, batch_size, seed, source.split),
        first=lambda: first,
        stop=batches,
        workers=0 if source.files is None else min(asked, max(0, batches - first)),
        pin=pin,
    )
