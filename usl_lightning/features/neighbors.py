"""The neighbours that USL-T draws from: a table made by others, or the nearest images to an encoder's eye."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.source import ImageSource
from usl_lightning.models.encoder import load_encoder

if TYPE_CHECKING:
    from usl_lightning.data.modules import ImageData

log = logging.getLogger(__name__)


def read_neighbors(path: str, source: ImageSource) -> Tensor:
    """The table in a file: int64 [n, k], positions in the data set.

    Args:
        path: `.npy` with the table; or `.npz` as `encoder_neighbors` keeps it, which says which images it is of.
        source: the images.

    Raises:
        UslError: the file is missing or damaged, holds no such table of n images, or one of other images.
    """
    from usl_lightning.features.kept import check_dataset

    where, n = f"data.neighbors: {path}", len(source)
    try:
        arrays = load_arrays(Path(path), where=where)
    except FileNotFoundError as error:
        raise UslError(f"{where}: no such file") from error
    array = arrays.get("neighbors", arrays.get(""))
    if array is None or array.dtype.kind not in "iufbc":
        found = str(array.dtype) if array is not None else ", ".join(arrays) or "nothing"
        raise UslError(f"{where} holds {found}; expected an array 'neighbors' of positions, expected one row an image")
    table = torch.from_numpy(array)
    check_dataset(arrays.get("about"), source.fingerprint, "neighbours", where)
    kind, whole = table.dtype, _is_integer(table) and table.dim() == 2 and len(table) == n and table.shape[1] > 0
    table = table.long() if whole else table
    if not whole or int(table.min()) < 0 or int(table.max()) >= n:
        raise UslError(
            f"{where} holds {list(table.shape)} {kind}; expected one row of positions from 0 to {n - 1} for "
            f"each of the {n} images"
        )
    same = (table == table[:, :1]).all(1) if table.shape[1] > 1 else torch.zeros(n, dtype=torch.bool)
    if same.any():
        row = int(same.nonzero()[0])
        raise UslError(
            f"{where}: row {row} is {int(table[row, 0])} throughout ({int(same.sum())} such rows); expected "
            f"{table.shape[1]} different neighbours of each image"
        )
    return table


def _is_integer(table: Tensor) -> bool:
    return not table.is_floating_point() and not table.is_complex() and table.dtype != torch.bool


def encoder_neighbors(path: str, data: "ImageData", k: int) -> Tensor:
    """Each image itself and its k nearest by the direction of their features; both are kept on disk.

    A run that is continued reads the table it began with; one of other features, images or k is another file.

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
    from usl_lightning.features.extraction import features_about
    from usl_lightning.features.images import image_features
    from usl_lightning.features.kept import kept_or_made
    from usl_lightning.features.parts import Place
    from usl_lightning.vectors.distances import unit_rows
    from usl_lightning.vectors.neighbors import nearest_neighbors

    if k < 1:
        raise UslError(f"data.k: {k} neighbours; expected at least 1")
    encoder = load_encoder(path)
    trained, given = (f"{s.channels}×{s.height}×{s.width}" for s in (encoder.image, data.train_source))
    if trained != given:
        raise UslError(f"data.neighbors_from: {path} was trained on {trained} images, these are {given}")

    def search(_: Path) -> Tensor:
        features = unit_rows(image_features(encoder, data))
        found = nearest_neighbors(features, min(k + 1, len(features)))
        log.info("neighbours: %d of each image, recall %.3f", found.indices.shape[1] - 1, found.measured_recall)
        return found.indices

    place = Place(data.trainer)
    about = {**features_about(encoder, data.train_source, place), "format": "usl-neighbors", "k": k}
    return kept_or_made("neighbors", about, search, place).cpu()
