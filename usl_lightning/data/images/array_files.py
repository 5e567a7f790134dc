"""`.npy` and `.npz` files of the user's own, as the data set `arrays`.

`--data.dir` is one file or a folder:

- `X.npy`: uint8 images [n, h, w] or [n, h, w, c]; the split `train`, without labels;
- `X.npz` with `images`, and perhaps `labels` [n] and `classes`: the split `train`;
- `X.npz` with `train_images`, `train_labels`, `test_images`, …: those splits (as MedMNIST has them);
- a folder with `train.npz` or `train.npy`, `test.npz`, …: those splits, each as above.

Labels are whole numbers, -1 for none; `classes` are their names. Nothing is ever unpickled.
"""

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from usl_lightning.base.arrays import DAMAGE
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import once
from usl_lightning.data.images.catalog import data_folder
from usl_lightning.labels.entries import MOST_CLASSES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from usl_lightning.data.images.arrays import Arrays

_SPLITS = ("train", "test", "val", "unlabeled")


def locate(dir: str | None) -> dict[str, tuple[Path, str]]:
    """For each split that is there, its file and what its keys begin with (`"train_"`, or nothing); once a stage.

    Standard library only.

    Raises:
        UslError: there is no such file, or nothing in the folder or file that is a split.
    """
    root = data_folder(dir)
    return once(("arrays", str(root)), lambda: _locate(root))


def _locate(root: Path) -> dict[str, tuple[Path, str]]:
    if os.path.isdir(root):
        files = [(split, root / (split + suffix)) for suffix in (".npz", ".npy") for split in _SPLITS]
        splits = {split: (path, "") for split, path in reversed(files) if path.is_file()}
        expected = "train.npz or train.npy (and test.npz or test.npy)"
    elif root.suffix == ".npy" and os.path.isfile(root):
        return {"train": (root, "")}
    elif root.suffix == ".npz" and os.path.isfile(root):
        keys = _keys(root)
        splits = {s: (root, f"{s}_") for s in _SPLITS if f"{s}_images" in keys}
        if "images" in keys:
            splits["train"] = (root, "")
        expected = "an array 'images', or 'train_images' (and 'test_images')"
    else:
        raise UslError(
            f"{root}: no such .npy or .npz file or folder of them; give it with --data.dir (expected: uint8"
            " images [n, h, w] or [n, h, w, c])"
        )
    if "train" not in splits:
        raise UslError(f"{root}: expected {expected} in it, found {', '.join(splits) or 'none of these'}")
    return splits


def _keys(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGE as error:
        raise UslError(f"{path}: not an .npz file ({error}); write it again") from error


def read(split: str, dir: str | None) -> "Arrays":
    """Read one split.

    Raises:
        UslError: it is not there, damaged, or of another type or shape than the module's text says.
    """
    import numpy as np

    from usl_lightning.data.images import arrays

    splits = locate(dir)
    if split not in splits:
        raise UslError(f"{data_folder(dir)}: no split '{split}'; it has {', '.join(splits)}")
    path, prefix = splits[split]
    labels = {name: _labels(*place) for name, place in splits.items()}
    if path.suffix == ".npy":
        images = arrays.as_images(path, arrays.load_npy(path))
    else:
        with arrays.open_npz(path) as content:
            images = arrays.as_images(path, arrays.array_of(path, content, f"{prefix}images"))
    if len(images) == 0:
        raise UslError(f"{path}: no image in it")
    chosen = labels[split]
    if chosen is None:
        chosen = np.full(len(images), -1, dtype=np.int64)
    if len(chosen) != len(images):
        raise UslError(f"{path}: {len(images)} images but {len(chosen)} labels")
    count = max((int(some.max()) + 1 for some in labels.values() if some is not None and len(some)), default=0)
    return arrays.Arrays(np.ascontiguousarray(images), chosen, _classes(path, count))


def _labels(path: Path, prefix: str) -> "NDArray[np.int64] | None":
    """The labels of a split [n], if the file has any."""
    import numpy as np

    from usl_lightning.data.images import arrays

    if path.suffix == ".npy" or f"{prefix}labels" not in _keys(path):
        return None
    with arrays.open_npz(path) as content:
        labels = arrays.array_of(path, content, f"{prefix}labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    if not whole or (len(labels) and not -1 <= labels.min() <= labels.max() < MOST_CLASSES):
        to = f", {labels.min()} to {labels.max()}" if whole else ""
        raise UslError(
            f"{path}: '{prefix}labels' is {labels.dtype} {list(labels.shape)}{to}; expected whole numbers [n] below "
            f"{MOST_CLASSES:,}, -1 for no label"
        )
    return labels.astype(np.int64)


def _classes(path: Path, count: int) -> tuple[str, ...]:
    from usl_lightning.data.images import arrays

    if path.suffix == ".npy" or "classes" not in _keys(path):
        return tuple(str(i) for i in range(count))
    with arrays.open_npz(path) as content:
        names = arrays.array_of(path, content, "classes")
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) < count:
        raise UslError(f"{path}: 'classes' is {names.dtype} {list(names.shape)}, expected {count} texts")
    return tuple(names.tolist())
