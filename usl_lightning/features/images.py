"""Features of every image of a data set: computed once and kept on disk, or read from a file."""

import hashlib
import logging
import shutil
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.once import as_noted
from usl_lightning.base.progress import progress
from usl_lightning.base.text import composed
from usl_lightning.base.version import __version__
from usl_lightning.compute.distributed import gather_uneven, world_size
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import process_range
from usl_lightning.features.kept import check_dataset, kept_or_made, process_device, process_rank
from usl_lightning.models.encoder import Encoder
from usl_lightning.vectors.distances import check_directions, check_features
from usl_lightning.vectors.memory import check_memory

log = logging.getLogger(__name__)


def image_features(encoder: Encoder, datamodule: ImageData, *, cache: str | Path | None = None) -> Tensor:
    """Features of the images to learn from, float32 [n, d] in the order of the data set, on every process.

    Computed in evaluation mode on unaugmented images, each process its share, and kept in a `.npz` file (which
    `read_features` reads too) whose name is a hash of all that they depend on: weights, data set, image size,
    precision, version. A run that is killed has its features so far on disk, and the next one goes on from
    there. A kept file that is damaged is noticed (each part has a checksum) and made again.

    Args:
        encoder: the network; moved to the device of the data's trainer (the CPU without one).
        datamodule: the images; its trainer, if any, says which share is this process's.
        cache: the folder to keep the file in; None: $USL_CACHE, else ~/.cache/usl-lightning.

    Raises:
        UslError: features that are not finite (names the images), or a folder that cannot be written or is full.

    Memory: the features, and twice that on the device while several processes exchange them.
    """

    def extract(path: Path) -> Tensor:
        datamodule.setup("predict")  # features that are kept need no image decoded
        parts = path.with_suffix(".parts")
        features = gather_uneven(_extract(encoder, datamodule, parts).to(process_device(datamodule)))
        if process_rank(datamodule) == 0:
            shutil.rmtree(parts, ignore_errors=True)
        return check_features(features)

    return kept_or_made("features", features_about(encoder, datamodule), datamodule, extract, cache=cache)


def features_about(encoder: Encoder, datamodule: ImageData) -> dict[str, Any]:
    """All that `image_features` depend on; JSON can hold it."""
    source, trainer = datamodule.train_source, datamodule.trainer
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return {
        "format": "usl-features",
        "version": __version__,
        "backbone": encoder.backbone,
        "weights": digest.hexdigest(),
        "dataset": source.fingerprint,
        "images": [len(source), source.channels, source.height, source.width],
        **({"rendering": source.rendering} if source.rendering else {}),
        "precision": "32-true" if trainer is None else str(trainer.precision),
    }


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


def published_encoder(backbone: str, image: ImageSpec, *, pretrained: bool = True) -> Encoder:
    """A network of timm with its published weights, in evaluation mode; images are normalised as it was trained.

    Args:
        backbone: a model name of timm, with or without the tag of its weights.
        image: the images it is to look at.
        pretrained: False: random weights (always the same), and the statistics of the images.

    Raises:
        UslError: an unknown name, a network for images of another size, or weights that cannot be loaded.
    """
    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Encoder(backbone, image).eval()
    return Encoder(backbone, image, pretrained=True).eval()


# a pass over the images ----------------------------------------------------------------------------------


def _extract(encoder: Encoder, datamodule: ImageData, folder: Path) -> Tensor:
    """This process's share, float32 [share, d]: rows are appended to a file, so that a killed run is continued."""
    n, width = len(datamodule.train_source), encoder.feature_dim
    share = process_range(n, process_rank(datamodule), world_size())
    batch_bytes = 4 * width * datamodule.eval_batch_size
    check_memory(3 * 4 * width * n, f"features of {n} images, {width} numbers each")  # gathered, and in unit rows
    _check_space(folder, 8 * width * n)
    path = folder / f"{share.start}-{share.stop}.f32"
    training = encoder.training
    encoder.to(process_device(datamodule)).eval()
    try:
        with open(path, "ab") as file:
            first = file.tell() // batch_bytes
            file.truncate(first * batch_bytes)  # what was half written
            if first:
                log.info("features: continued after %d of %d images", first * datamodule.eval_batch_size, len(share))
            total = -(-len(share) // datamodule.eval_batch_size)
            with progress("features", total, "batch", done=first) as bar:
                for batch in datamodule.whole_set(first):
                    with _precision(datamodule):
                        features = encoder(batch.images)
                    file.write(features.float().cpu().numpy().data)
                    file.flush()
                    bar.update()
        rows = np.fromfile(path, np.float32).reshape(-1, width)
    except OSError as error:
        raise UslError(f"{path}: cannot be written ({error.strerror}); give another --model.cache") from error
    finally:
        encoder.train(training)
    return torch.from_numpy(rows)


def _precision(datamodule: ImageData) -> AbstractContextManager[Any]:
    """Autocast, as the trainer has it for its own steps."""
    return nullcontext() if datamodule.trainer is None else datamodule.trainer.precision_plugin.forward_context()


def _check_space(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UslError(f"{folder}: cannot be written ({error.strerror}); give another --model.cache") from error
    if free < needed:
        raise UslError(
            f"{folder.parent}: the features need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "give another --model.cache"
        )


# files of features ---------------------------------------------------------------------------------------


def _load(path: Path, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of the file: `features`, and what it has of others."""
    if path.suffix not in (".npy", ".npz"):
        raise UslError(f"{where}: expected a .npy or .npz file")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"features": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "it is not a NumPy file of numbers"
        raise UslError(f"{where}: cannot be read ({reason})") from error
    as_noted(path)
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
