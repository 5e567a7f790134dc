"""Features of real data, for comparing fast code with slow code. Each: float32 [n, d]."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_image
from sklearn.decomposition import PCA
from torch import Tensor

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
NAMES = ("digits", "patches", "cells", "fashion_mnist")


@cache
def real_features(name: str, n: int | None = None) -> Tensor:
    """The first n unit rows of: digits' pixels; projected patches of a photograph; measured cell nuclei;
    Fashion-MNIST's principal components."""
    if name == "digits":
        rows = load_digits().data
    elif name == "patches":
        rows = _patches() @ np.random.default_rng(0).normal(size=(192, 48))
    elif name == "cells":
        rows = load_breast_cancer().data
        rows = (rows - rows.mean(0)) / rows.std(0)
    else:
        rows = _fashion_mnist()
    x = torch.from_numpy(np.ascontiguousarray(rows[:n])).double()
    return torch.nn.functional.normalize(x, dim=1).float()


def _patches() -> np.ndarray:
    image = load_sample_image("china.jpg") / 255.0
    grid = image[:424, :640].reshape(53, 8, 80, 8, 3).swapaxes(1, 2).reshape(-1, 192)
    return grid[np.random.default_rng(1).permutation(len(grid))[:1500]]


def _fashion_mnist() -> np.ndarray:
    if not FASHION.exists():
        pytest.skip(f"{FASHION} is missing; on Debian: apt install dataset-fashion-mnist")
    import gzip

    pixels = np.frombuffer(gzip.decompress(FASHION.read_bytes()), np.uint8, offset=16).reshape(-1, 784)
    return PCA(32, random_state=0).fit_transform(pixels[:1500] / 255.0)
