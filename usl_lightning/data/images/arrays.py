"""Readers of the files that published image sets come in. NumPy only.

Every reader takes the files of one split, in the catalog's order, and gives uint8 images [n, c, h, w] and
int64 labels [n], -1 where there is none, in the order of the files (torchvision's).
"""

import gzip
import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from usl_lightning.base.arrays import DAMAGE, check_texts, load_array
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.catalog import ARRAY_SETS, Found


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [n, c, h, w], labels int64 [n] (-1: none), class names in label order (may be empty)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def read_named(name: str, found: Sequence[Found]) -> Arrays:
    """Read the parts of a named set and join them.

    Raises:
        UslError: a file is damaged or not what its name says; the line names the file.
    """
    parts = [_READERS.get(name, _read_medmnist)(part) for part in found]
    classes = ARRAY_SETS[name].classes
    images = np.concatenate([p[0] for p in parts]) if len(parts) > 1 else parts[0][0]
    labels = np.concatenate([p[1] for p in parts])
    if name == "chestmnist":
        labels = np.full(len(images), -1, dtype=np.int64)
    if len(images) == 0:
        raise UslError(f"data set {name}: no image in {', '.join(str(p) for f in found for p in f.paths)}")
    if labels.max() >= len(classes) or labels.min() < -1:
        where = ", ".join(str(path) for part in found for path in part.paths)
        raise UslError(f"{where}: labels run to {labels.max()}, but {name} has {len(classes)} classes")
    return Arrays(np.ascontiguousarray(images), labels, classes)


_Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _paired(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> _Pair:
    if len(images) != len(labels):
        raise UslError(f"{path}: {len(images)} images but {len(labels)} labels; fetch the file again")
    return images, labels.astype(np.int64)


# digits --------------------------------------------------------------------------------------------------


def _read_digits(part: Found) -> _Pair:
    """scikit-learn's 1,797 digits, 8×8, values 0…16 scaled to 0…255 and rounded.

    The order is `numpy.random.RandomState(0).permutation(1797)` of scikit-learn's; its first 1,437 are the
    training images, its last 360 the test images.
    """
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(data))
    order = order[:1437] if part.split == "train" else order[1437:]
    images = np.rint(data[order] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return images, labels[order].astype(np.int64)


# MNIST and Fashion-MNIST ---------------------------------------------------------------------------------


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes, gzipped or not: two zero bytes, type 8, the number of axes, their lengths.

    Raises:
        UslError: it is not such a file, or shorter than it says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UslError(f"{path}: damaged ({error}); fetch the file again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UslError(f"{path}: not an idx file of bytes; fetch the file again")
    axes = content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4 : 4 + 4 * axes], ">u4"))
    start = 4 + 4 * axes
    if len(shape) != axes or len(content) - start != int(np.prod(shape)):
        raise UslError(f"{path}: {len(content)} bytes do not hold {shape} values; fetch the file again")
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def _read_mnist(part: Found) -> _Pair:
    images, labels = (read_idx(path) for path in part.paths)
    if images.ndim != 3:
        raise UslError(f"{part.paths[0]}: {images.ndim} axes, expected images [n, h, w]")
    return _paired(part.paths[0], images[:, None], labels)


# CIFAR ---------------------------------------------------------------------------------------------------


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, lists, dictionaries and NumPy arrays; nothing else, so no code is run."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_core = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        if numpy_core and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _frombuffer
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _frombuffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def unpickle_arrays(file: IO[bytes]) -> Any:
    """Unpickle plain values and NumPy arrays from a file that is not trusted.

    Raises:
        pickle.UnpicklingError: anything else is in it.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()


def _read_cifar(part: Found, label_key: str) -> _Pair:
    images, labels = [], []
    for path in part.paths:
        try:
            with open(path, "rb") as file:
                content = unpickle_arrays(file)
            # Files written by Python 3 have bytes for keys; the original ones, text.
            content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
            pixels = np.asarray(content["data"])
            label = np.asarray(content[label_key], dtype=np.int64)
        except Exception as error:  # a damaged pickle can raise anything
            raise UslError(f"{path}: not a CIFAR batch ({error}); fetch the file again") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or label.ndim != 1:
            raise UslError(f"{path}: its data is {pixels.dtype} {pixels.shape}, expected uint8 [n, 3072]")
        pair = _paired(path, pixels.reshape(-1, 3, 32, 32), label)
        images.append(pair[0])
        labels.append(pair[1])
    return np.concatenate(images), np.concatenate(labels)


def _read_cifar10(part: Found) -> _Pair:
    return _read_cifar(part, "labels")


def _read_cifar100(part: Found) -> _Pair:
    return _read_cifar(part, "fine_labels")


# SVHN, STL-10, MedMNIST ----------------------------------------------------------------------------------


def _read_svhn(part: Found) -> _Pair:
    """Cropped house numbers: X uint8 [32, 32, 3, n], y [n, 1] with 10 for the digit 0."""
    from scipy.io import loadmat

    path = part.paths[0]
    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].astype(np.int64).reshape(-1)
    except Exception as error:  # a damaged file can raise anything
        raise UslError(f"{path}: not an SVHN file ({error}); fetch the file again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise UslError(f"{path}: X is {images.dtype} {images.shape}, expected uint8 [32, 32, 3, n]")
    return _paired(path, np.transpose(images, (3, 2, 0, 1)), np.where(labels == 10, 0, labels))


def _read_stl10(part: Found) -> _Pair:
    """96×96 colour images, each channel stored column by column; labels 1…10; none for `unlabeled`."""
    path = part.paths[0]
    pixels = np.fromfile(path, dtype=np.uint8)
    if pixels.size % (3 * 96 * 96):
        raise UslError(f"{path}: {pixels.size} bytes are not whole 96×96 images; fetch the file again")
    images = np.transpose(pixels.reshape(-1, 3, 96, 96), (0, 1, 3, 2))
    if len(part.paths) == 1:
        return images, np.full(len(images), -1, dtype=np.int64)
    labels = np.fromfile(part.paths[1], dtype=np.uint8).astype(np.int64) - 1
    if labels.size and labels.min() < 0:
        raise UslError(f"{part.paths[1]}: labels run from {labels.min() + 1}, expected 1 to 10")
    return _paired(path, images, labels)


def _read_medmnist(part: Found) -> _Pair:
    """`.npz` with `<split>_images` [n, h, w] or [n, h, w, 3] and `<split>_labels` [n, 1]."""
    path = part.paths[0]
    with open_npz(path) as content:
        images = as_images(path, array_of(path, content, f"{part.split}_images"))
        labels = array_of(path, content, f"{part.split}_labels")
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = np.full(len(labels), -1)  # several labels an image: not a class
    return _paired(path, images, labels.reshape(-1))


# .npy and .npz -------------------------------------------------------------------------------------------


def load_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` file; nothing in it is unpickled.

    Raises:
        UslError: it is not an `.npy` file.
    """
    array: NDArray[Any] = load_array(path)
    return array


def open_npz(path: Path) -> Any:
    """An `.npz` file, opened so that nothing in it is unpickled.

    Raises:
        UslError: it is not an `.npz` file.
    """
    try:
        content = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise UslError(f"{path}: not an .npz file ({error}); fetch or write it again") from error
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise UslError(f"{path}: not an .npz file; fetch or write it again")
    return content


def array_of(path: Path, content: Any, key: str) -> NDArray[Any]:
    """The array `key` of an opened `.npz` file.

    Raises:
        UslError: it is missing, damaged, or holds Python objects.
    """
    if key not in content:
        raise UslError(f"{path}: no array '{key}'; it has {', '.join(content.files) or 'none'}")
    try:
        array: NDArray[Any] = np.asarray(content[key])
        check_texts(array)
        return array
    except DAMAGE as error:
        raise UslError(f"{path}: array '{key}' cannot be read ({error})") from error


def as_images(path: Path, array: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [n, h, w] or [n, h, w, c] with 1 or 3 channels as [n, c, h, w].

    Raises:
        UslError: another type or shape.
    """
    fits = array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3))
    if array.dtype != np.uint8 or not fits or 0 in array.shape[1:]:
        raise UslError(
            f"{path}: the images are {array.dtype} {list(array.shape)}, expected uint8 [n, h, w] or"
            " [n, h, w, c] with 1 or 3 channels"
        )
    return array[:, None] if array.ndim == 3 else np.transpose(array, (0, 3, 1, 2))


_READERS: dict[str, Callable[[Found], _Pair]] = {
    "digits": _read_digits,
    "mnist": _read_mnist,
    "fashion_mnist": _read_mnist,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
    "svhn": _read_svhn,
    "stl10": _read_stl10,
}
