"""Real images for the tests of views: photographs that come with scikit-learn, its digits, and Fashion-MNIST."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")


@cache
def photos(side: int = 32, count: int = 16) -> Tensor:
    """uint8 [count, 3, side, side]: patches of two photographs, from close up to the whole scene."""
    from sklearn.datasets import load_sample_images

    scenes = [Image.fromarray(scene) for scene in load_sample_images().images]
    draw = np.random.default_rng(0)
    patches = []
    for i in range(count):
        scene = scenes[i % len(scenes)]
        extent = int(draw.integers(max(side, 40), 420))
        left, top = (int(draw.integers(0, whole - extent + 1)) for whole in scene.size)
        patch = scene.crop((left, top, left + extent, top + extent)).resize((side, side))
        patches.append(np.asarray(patch).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(patches))


@cache
def digits(count: int = 16) -> Tensor:
    """uint8 [count, 1, 8, 8]: handwritten digits."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(np.round(load_digits().images[:count] * (255 / 16)).astype(np.uint8))[:, None]


@cache
def fashion(count: int = 16) -> Tensor | None:
    """uint8 [count, 1, 28, 28]: clothes; None where the files are not installed."""
    if not FASHION.exists():
        return None
    with gzip.open(FASHION) as file:
        data = file.read(16 + count * 784)[16:]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(count, 1, 28, 28)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [c, h, w] as a Pillow image, mode L or RGB."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 [c, h, w]."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))
