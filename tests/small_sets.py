"""Ten images of each data set that a shipped configuration may ask for, in the real formats on disk."""

import gzip
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def small_sets(folder: Path) -> Path:
    """Make all of them in a folder, and `labels.json`, a label index of two; returns the folder."""
    rng = np.random.default_rng(0)
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (
            ("images-idx3", rng.integers(0, 256, (10, 28, 28), dtype=np.uint8)),
            ("labels-idx1", np.arange(10, dtype=np.uint8)),
        ):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            with gzip.open(raw / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    for sub, files, key in (
        ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels"),
        ("cifar-100-python", ["train", "test"], "fine_labels"),
    ):
        (folder / sub).mkdir()
        for file in files:
            batch = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), key: list(range(10))}
            (folder / sub / file).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "labels.json").write_text("[0, 1]")
    (folder / "stl10_binary").mkdir()
    for split in ("train", "test", "unlabeled"):
        pixels = rng.integers(0, 256, (10, 3, 96, 96), dtype=np.uint8)
        (folder / "stl10_binary" / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (folder / "stl10_binary" / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
    for split in ("train", "test", "extra"):
        svhn = {"X": rng.integers(0, 256, (32, 32, 3, 10), dtype=np.uint8), "y": np.arange(1, 11)[:, None]}
        savemat(folder / f"{split}_32x32.mat", svhn)
    medmnist = {
        f"{split}_{part}": rng.integers(0, 8, (10, 28, 28, 3) if part == "images" else (10, 1), dtype=np.uint8)
        for split in ("train", "val", "test")
        for part in ("images", "labels")
    }
    np.savez(folder / "bloodmnist.npz", **medmnist)
    for i in range(10):
        picture = Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8))
        _save(picture, folder / "photos" / f"class{i % 2}" / f"{i}.png")
        for split in ("train", "val"):
            _save(picture, folder / "imagenet" / split / f"n0000000{i % 2}" / f"{i}.JPEG")
    (folder / "imagenet100.txt").write_text("n00000000\nn00000001\n")
    return folder


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
