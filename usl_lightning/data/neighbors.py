"""The neighbours that USL-T draws from: a table made by others, or the nearest images to an encoder's eye."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from usl_lightning.errors import UslError
from usl_lightning.models.encoder import load_encoder

if TYPE_CHECKING:
    from usl_lightning.data.modules import ImageData

log = logging.getLogger(__name__)


def read_neighbors(path: str, n: int) -> Tensor:
    """The table in a `.npy` file: int64 [n, k], positions in the data set.

    Raises:
        UslError: the file is missing, damaged, or holds no such table of n images.
    """
    try:
        table = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise UslError(f"data.neighbors: {path} is not a readable .npy file ({error})") from error
    whole = not table.is_floating_point() and table.dim() == 2 and len(table) == n and table.shape[1] > 0
    if not whole or int(table.min()) < 0 or int(table.max()) >= n:
        raise UslError(
            f"data.neighbors: {path} holds {list(table.shape)} {table.dtype}; expected one row of "
            f"positions from 0 to {n - 1} for each of the {n} images"
        )
    return table.long()


def encoder_neighbors(path: str, data: "ImageData", k: int) -> Tensor:
    """Each image itself and its k nearest by the direction of their features, which are kept on disk.

    The published code draws from 21 columns for k = 20: the image itself is among its own candidates.

    Args:
        path: checkpoint whose encoder gives the features.
        data: the images; set up.
        k: neighbours beside the image itself; fewer in a set of fewer images.

    Returns:
        int64 [n, k + 1], on the CPU, the same on every process: by distance, ties by index.

    Raises:
        UslError: k below 1, or a checkpoint that is missing, damaged or of images of another shape.
    """
    # These look at images through the data modules.
    from usl_lightning.selection.features import image_features
    from usl_lightning.selection.geometry import unit_rows
    from usl_lightning.selection.neighbors import nearest_neighbors

    if k < 1:
        raise UslError(f"data.k: {k} neighbours; expected at least 1")
    encoder = load_encoder(path)
    trained, given = (f"{s.channels}×{s.height}×{s.width}" for s in (encoder.image, data.train_source))
    if trained != given:
        raise UslError(f"data.neighbors_from: {path} was trained on {trained} images, these are {given}")
    features = unit_rows(image_features(encoder, data))
    found = nearest_neighbors(features, min(k + 1, len(features)))
    log.info("neighbours: %d of each image, recall %.3f", found.indices.shape[1] - 1, found.measured_recall)
    return found.indices.cpu()
