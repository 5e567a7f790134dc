"""What a report shows of the features a choice was made from: a few thousand images, with density and group."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from usl_lightning.base.arrays import load_arrays
from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.errors import UslError
from usl_lightning.data.keys import permutation
from usl_lightning.vectors.density import limit_k
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.neighbors import knn

CHOSEN, OTHERS = 2000, 2000
"""Images of an overview, at most: those chosen first, and others drawn evenly from the rest."""

NEIGHBORS = 20
"""Of the density, where the method has no number of its own; as in `label_quality`."""

DIMENSIONS = 50
"""Principal components that are kept: what a two-dimensional map is made of (van der Maaten and Hinton, 2008, §4)."""


@dataclass(frozen=True)
class Overview:
    """Some images of a data set as a selector saw them.

    Attributes:
        images: int64 [m], positions in the data set: chosen ones in order of choice, then the sample, ascending.
        chosen: how many of them are chosen ones.
        total: images of the data set.
        neighbors: k of the density.
        density: float32 [m]: 1/(mean squared distance to the k nearest images of the whole set, itself among them);
            this is USL's utility (ECCV 2022, eq. 1, as in the published code).
        nearest: int64 [m]: the nearest chosen image, as its place in the order of choice; those that share it are
            its group.
        features: float16 [m, at most 50], principal components of the normalised features.
        clusters: int64 [m], the method's cluster of each; None if it makes none.
        cluster_sizes: int64 [number of clusters], images of the whole set in each; None likewise.
    """

    images: NDArray[np.int64]
    chosen: int
    total: int
    neighbors: int
    density: NDArray[np.float32]
    nearest: NDArray[np.int64]
    features: NDArray[np.float16]
    clusters: NDArray[np.int64] | None = None
    cluster_sizes: NDArray[np.int64] | None = None

    def write(self, path: Path) -> None:
        """Write a `.npz`, atomically.

        Raises:
            UslError: the file cannot be written.
        """
        arrays: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    def _check(self) -> None:
        """Refuse, with a ValueError, arrays that are not those of an overview: a file may hold anything."""
        m, groups = len(self.images), (self.cluster_sizes, self.clusters)
        rows: list[NDArray[Any]] = [self.images, self.density, self.nearest]
        rows += [] if self.clusters is None else [self.clusters]
        whole = [self.images, self.nearest, *(array for array in groups if array is not None)]
        if any(array.shape != (m,) for array in rows) or self.features.ndim != 2 or len(self.features) != m:
            raise ValueError("its arrays are not of the same images")
        if any(array.dtype.kind not in "iu" or (array.size and array.min() < 0) for array in whole):
            raise ValueError("its numbers are no positions")
        for array in (self.density, self.features):
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError("its numbers are not finite")
        if not 0 < self.chosen <= m <= self.total or (m and self.images.max() >= self.total):
            raise ValueError(f"{self.chosen} chosen images among {m} of {self.total}")
        sizes, clusters = self.cluster_sizes, self.clusters
        if (clusters is None) != (sizes is None):
            raise ValueError("its clusters have no sizes")
        if clusters is not None and sizes is not None and (sizes.ndim != 1 or (m and clusters.max() >= len(sizes))):
            raise ValueError("its clusters have no sizes")

    @classmethod
    def read(cls, path: Path) -> "Overview | None":
        """What was written; None where there is no such file.

        Raises:
            UslError: the file is damaged.
        """
        try:
            kept = load_arrays(path)
            overview = cls(
                images=kept["images"],
                chosen=int(kept["chosen"]),
                total=int(kept["total"]),
                neighbors=int(kept["neighbors"]),
                density=kept["density"],
                nearest=kept["nearest"],
                features=kept["features"],
                clusters=kept.get("clusters"),
                cluster_sizes=kept.get("cluster_sizes"),
            )
            overview._check()
            return overview
        except FileNotFoundError:
            return None
        except (UslError, ValueError, TypeError, KeyError) as error:
            raise UslError(f"{path}: damaged ({error}); delete it, the report does without") from error


def make_overview(
    features: Tensor, indices: Tensor, *, k: int = NEIGHBORS, seed: int = 0, clusters: Tensor | None = None
) -> Overview | None:
    """Look at the chosen images and a sample of the others.

    Args:
        features: [n, d] that the choice was made from; any device.
        indices: int64 [budget], the chosen images in order.
        k: neighbours in the density, at most a tenth of the images.
        seed: of the sample.
        clusters: int64 [n], ≥ 0: the method's own, if it makes any.

    Returns:
        None if there are no features, or a row is all zeros, which has no direction.

    Time: that of the k nearest neighbours of 4,000 images.
    """
    if features.shape[1] == 0 or not bool(features.any(1).all()):
        return None
    x, n = unit_rows(features), len(features)
    picks = indices.cpu()
    rest = torch.ones(n, dtype=torch.bool)
    rest[picks] = False
    order = permutation(n, seed, "overview")
    sample = order[rest[order]][:OTHERS].sort().values
    rows = torch.cat([picks[:CHOSEN], sample]).to(x.device)
    k = limit_k(k, n, include_self=True)
    distances, _ = knn(x, k, queries=x[rows])
    _, nearest = knn(x[picks.to(x.device)], 1, queries=x[rows])
    return Overview(
        images=rows.cpu().numpy(),
        chosen=min(CHOSEN, len(picks)),
        total=n,
        neighbors=k,
        density=(1 / distances.double().mean(1).clamp_min(1e-12)).float().cpu().numpy(),
        nearest=nearest[:, 0].cpu().numpy(),
        features=principal_components(x[rows], DIMENSIONS).half().cpu().numpy(),
        clusters=None if clusters is None else clusters[rows].cpu().numpy(),
        cluster_sizes=None if clusters is None else torch.bincount(clusters).cpu().numpy(),
    )


def principal_components(x: Tensor, dimensions: int) -> Tensor:
    """The first principal components of rows [m, d]: float64 [m, min(dimensions, d)], the widest first.

    The sign of each is that which makes its largest entry, by amount, positive.
    """
    centred = x.double() - x.double().mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dimensions]
    out = centred @ directions
    largest = out.gather(0, out.abs().argmax(0, keepdim=True))
    return out * torch.where(largest < 0, -1.0, 1.0)
