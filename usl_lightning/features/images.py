"""Features of every image of a data set: computed once and kept on disk, or read from a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.documents import composed
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.modules import ImageData
from usl_lightning.features.extraction import extract
from usl_lightning.features.kept import check_dataset
from usl_lightning.features.parts import Place
from usl_lightning.models.encoder import Encoder
from usl_lightning.vectors.distances import check_directions, check_features


def image_features(
    encoder: Encoder, datamodule: ImageData, *, cache: str | Path | None = None, sharded: bool = False
) -> Tensor:
    """Features of the images to learn from, float32 [n, d] in the order of the data set, on every process.

    Computed in evaluation mode on unaugmented images, each process its share, and kept in a `.npz` file (which
    `read_features` reads too) whose name is a hash of all that they depend on: weights, data set, image size,
    precision, version. A run that is killed has its features so far on disk, and the next one goes on from
    there. A kept file that is damaged is noticed (each part has a checksum) and made again.

    Args:
        encoder: the network; moved to the device of the data's trainer (the CPU without one).
        datamodule: the images; its trainer, if any, says which share is this process's.
        cache: the folder to keep the file in; None: $USL_CACHE, else ~/.cache/usl-lightning.
        sharded: of this process's share of the images alone.

    Raises:
        UslError: features that are not finite (names the images), or a folder that cannot be written or is full.

    Memory: the features, and twice that on the device while several processes exchange them.
    """

    def batches(first: int) -> Iterator[Tensor]:
        datamodule.setup("predict")  # features that are kept need no image decoded
        return (batch.images for batch in datamodule.whole_set(first))

    place, size = Place(datamodule.trainer), datamodule.eval_batch_size
    return extract(encoder, datamodule.train_source, batches, size, place, cache=cache, sharded=sharded)


def read_features(path: str | Path, source: ImageSource) -> Tensor:
    """Features of the images of `source` from a file, float32 or float64 [n, d] in the order of the data set.

    Args:
        path: `.npy` with a matrix [n, d]; or `.npz` with `features` [n, d] and perhaps `ids` [n]: which image each
            row is of, as positions in the data set or, for image folders, as paths. A file that `image_features`
            kept says which images it is of.
        source: the images.

    Raises:
        UslError: the file cannot be read, has not one row for each image, is of other images or names images
            that the data set does not have, or holds NaN, infinite values or a row of zeros (names the rows).
    """
    where = f"model.features: {path}"
    arrays = _load(Path(path), where)
    rows, ids = arrays["features"], arrays.get("ids")
    check_dataset(arrays.get("about"), source.fingerprint, "features", where)
    if len(rows) != len(source):
        raise UslError(
            f"{where}: {len(rows)} rows for the {len(source)} images of {source.name}/{source.split}; expected one "
            "row for each image"
        )
    features = check_features(torch.from_numpy(rows.astype(np.promote_types(rows.dtype, np.float32))), where)
    check_directions(features, where)
    return features if ids is None else features[_rows_of_images(ids, source, where)]


def read_share(path: str | Path, source: ImageSource, share: range) -> Tensor:
    """The rows of some images from a file of features of all, as they are; no others are read.

    Args:
        path: `.npy` with a matrix [n, d] of floating-point numbers.
        source: the images.
        share: positions.

    Raises:
        UslError: the file cannot be read, is of another kind, or has not one row for each image.
    """
    where = f"model.features: {path}"
    if Path(path).suffix != ".npy":
        raise UslError(f"{where}: expected a .npy file, of which processes can read their shares (model.sharded)")
    try:
        whole = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UslError(f"{where}: no such file") from error
    except (OSError, ValueError) as error:
        raise UslError(f"{where}: cannot be read ({str(error).splitlines()[0]})") from error
    if whole.ndim != 2 or whole.dtype.kind != "f" or len(whole) != len(source):
        raise UslError(
            f"{where}: holds {whole.dtype} {list(whole.shape)}; expected floating-point numbers "
            f"[{len(source)}, dimensions], a row for each image"
        )
    rows = np.array(whole[share.start : share.stop])
    return torch.from_numpy(rows.astype(np.promote_types(rows.dtype, np.float32)))


# files of features ---------------------------------------------------------------------------------------


def _load(path: Path, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of the file: `features`, and what it has of others."""
    if path.suffix not in (".npy", ".npz"):
        raise UslError(f"{where}: expected a .npy or .npz file")
    try:
        arrays = load_arrays(path, where=where)
    except FileNotFoundError as error:
        raise UslError(f"{where}: no such file") from error
    if "" in arrays:
        arrays = {"features": arrays[""]}
    if "features" not in arrays:
        raise UslError(f"{where}: holds {', '.join(arrays) or 'nothing'}; expected an array named 'features'")
    features = arrays["features"]
    if features.ndim != 2 or features.dtype.kind != "f":
        raise UslError(
            f"{where}: holds {features.dtype} {list(features.shape)}; expected floating-point numbers "
            "[images, dimensions]"
        )
    return arrays


def _rows_of_images(ids: NDArray[Any], source: ImageSource, where: str) -> Tensor:
    """int64 [n]: the row of each image of the data set."""
    names: list[Any] = list(range(len(source)))
    if ids.dtype.kind == "U":
        if source.files is None:
            raise UslError(f"{where}: its ids are texts, but {source.name} has no files; expected positions")
        names = [composed(file) for file in source.files]
    rows = ids.tolist() if ids.shape == (len(source),) else []
    row_of = {composed(name) if isinstance(name, str) else name: row for row, name in enumerate(rows)}
    missing = [name for name in names if name not in row_of]
    if missing:
        raise UslError(
            f"{where}: its ids name no row for {len(missing)} of {len(source)} images, {missing[0]} among them; "
            "expected each image once"
        )
    return torch.tensor([row_of[name] for name in names])
