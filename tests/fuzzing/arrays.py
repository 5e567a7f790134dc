"""Readers of numbers: features, neighbours, images as arrays, what is kept of an earlier computation."""

import io
import json
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fuzzing import Reader
from fuzzing.containers import ARCHIVE, ARRAY
from fuzzing.mutations import BYTES, JSON, TABLE
from usl_lightning.base.errors import UslError
from usl_lightning.data.images.array_files import locate
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import ArraySource
from usl_lightning.data.images.subset import subset_of
from usl_lightning.features.images import read_features
from usl_lightning.features.kept import kept_or_made
from usl_lightning.features.neighbors import read_neighbors
from usl_lightning.features.parts import PartFile, Place
from usl_lightning.features.prior_files import read_prior, write_prior
from usl_lightning.report.chosen import group_shares, least_representative
from usl_lightning.report.embedding import plane
from usl_lightning.stage.overview import Overview, make_overview
from usl_lightning.vectors.priors import Recipe

N = 12
"""Images."""

DRAWN = np.random.default_rng(0)
FEATURES = DRAWN.normal(size=(N, 3)).astype(np.float32)
NEIGHBORS = np.stack([np.roll(np.arange(N), -i) for i in range(4)], 1)
IMAGES = DRAWN.integers(0, 256, (N, 4, 4), dtype=np.uint8)
LABELS = np.arange(N) % 3


def npy(array: Any) -> bytes:
    """An `.npy` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    """An `.npz` file."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _source() -> Any:
    return ArraySource(
        torch.from_numpy(IMAGES[:, None]), torch.from_numpy(LABELS), ("a", "b", "c"), name="x", split="train"
    )


def features(path: Path) -> None:
    """The features of a selection."""
    found = read_features(path, _source())
    assert found.shape[0] == N
    assert found.dtype in (torch.float32, torch.float64)
    assert bool(found.isfinite().all())


def neighbors(path: Path) -> None:
    """A table of neighbours."""
    found = read_neighbors(str(path), _source())
    assert found.dtype == torch.int64
    assert found.shape[0] == N
    assert 0 <= int(found.min()) <= int(found.max()) < N


def read_arrays(path: Path) -> None:
    """The data set `arrays`, all splits."""
    for split in locate(str(path)):
        source = open_source("arrays", split, dir=str(path), image_size=4)
        pixels = source.read(torch.arange(len(source)))
        assert pixels.dtype == torch.uint8
        assert pixels.shape[2:] == (4, 4)
        assert source.labels.shape == (len(source),)
        assert int(source.labels.max()) < max(1, len(source.classes))


def _images() -> Sequence[bytes]:
    names = np.array(["a", "b", "c"])
    return [
        npz(images=IMAGES, labels=LABELS, classes=names),
        npz(compressed=True, train_images=IMAGES, train_labels=LABELS[:, None], test_images=IMAGES[:3]),
        npz(images=np.stack([IMAGES] * 3, 3)),
    ]


ABOUT = {"format": "x", "dataset": "sha256:0"}


def _kept_file(folder: Path) -> Path:
    _keep(folder)
    return next(folder.glob("features-*.npz"))


def _keep(folder: Path) -> torch.Tensor:
    return kept_or_made("features", ABOUT, lambda _: torch.from_numpy(FEATURES), Place(), cache=folder)


def read_kept(path: Path) -> None:
    """Features kept of an earlier run: taken, or made again."""
    found = _keep(path.parent)
    if path.read_bytes() == npz(features=FEATURES, about=np.array(json.dumps(ABOUT))):
        assert np.array_equal(found.numpy(), FEATURES)


ROWS = FEATURES.repeat(4, 0)
"""Of unfinished parts, in blocks of eight."""


def _parts(folder: Path) -> Path:
    path = folder / "part.f32"
    path.unlink(missing_ok=True)
    path.with_suffix(".sums").unlink(missing_ok=True)
    with PartFile(path, 3, 8, len(ROWS)) as file:
        for start in range(0, len(ROWS), 8):
            file.append(torch.from_numpy(ROWS[start : start + 8]))
    return path.with_suffix(".sums")


def read_parts(path: Path) -> None:
    """Rows that a killed run has computed: as many as are whole, as they were."""
    sums, rows = path.read_bytes(), path.with_suffix(".f32")
    _parts(path.parent)
    path.write_bytes(sums)
    file = PartFile(rows, 3, 8, len(ROWS))
    assert np.array_equal(file.read().numpy(), ROWS[: file.done])


def read_overview(path: Path) -> None:
    """What a report shows of features."""
    overview = Overview.read(path)
    assert overview is not None
    least_representative(overview, 12)
    group_shares(overview)
    if zlib.crc32(path.read_bytes()) % 20 == 0:  # it takes long
        assert len(plane(overview.features)[0]) == len(overview.images)


DATA: Any = SimpleNamespace(train_source=_source(), classes=("a", "b", "c"))
"""What a prior is of."""


def read_guidance(path: Path) -> None:
    """Prior pseudo-labels: shares of each image, that add up to 1 at most, and how they are made anew."""
    prior, recipe = read_prior(str(path), DATA)
    shares = prior.rows(torch.arange(N))
    assert shares.shape == (N, 3)
    assert 0 <= float(shares.min()) <= float(shares.sum(1).max()) <= 1.001
    with suppress(UslError):
        recipe.check(3, 3, N)


def _priors() -> Sequence[bytes]:
    rows, features = torch.arange(6), torch.from_numpy(FEATURES)
    contents = []
    for recipe in (Recipe(clusters=(3, 6)), Recipe("graph", k=4), Recipe("nearest")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prior.npz"
            write_prior(path, recipe.prior(features, rows, rows % 3, 3, seed=0), recipe, DATA)
            contents.append(path.read_bytes())
    return [*contents, npz(probabilities=np.full((N, 3), 0.3, np.float32))]


def read_subset(path: Path) -> None:
    """Some images as a set of their own, by a label index."""
    subset = subset_of(DATA.train_source, str(path))
    assert 0 < len(subset) == len(set(subset.positions.tolist())) <= N
    assert subset.read(torch.arange(len(subset))).shape == (len(subset), 1, 4, 4)


def _index(**other: Any) -> bytes:
    source = {"name": "x", "split": "train", "size": N, "fingerprint": DATA.train_source.fingerprint}
    whole = {"format": "usl-label-index", "version": 1, "dataset": source, "method": {}, "indices": [7, 1, 4]}
    return json.dumps({**whole, "labels": [1, None, 0], "classes": ["a", "b", "c"], **other}).encode()


def _overview() -> Sequence[bytes]:
    rows = torch.from_numpy(DRAWN.normal(size=(40, 6)).astype(np.float32))
    contents = []
    for clusters in (None, torch.arange(40) % 4):
        overview = make_overview(rows, torch.tensor([3, 1, 7]), clusters=clusters)
        contents.append(npz(**{name: value for name, value in vars(overview).items() if value is not None}))
    return contents


READERS = (
    Reader("features_npy", ".npy", lambda: [npy(FEATURES), npy(FEATURES.astype(np.float64))], features, ARRAY),
    Reader("features_npz", ".npz", lambda: [
        npz(features=FEATURES, ids=np.arange(N)[::-1]), npz(compressed=True, features=FEATURES.astype(np.float16)),
        npz(features=FEATURES, about=np.array(json.dumps({"format": "x"}))),
    ], features, ARCHIVE),
    Reader("neighbors_npy", ".npy", lambda: [npy(NEIGHBORS), npy(NEIGHBORS.astype(np.uint8))], neighbors, ARRAY),
    Reader("neighbors_npz", ".npz", lambda: [npz(neighbors=NEIGHBORS, about=np.array("{}"))], neighbors, ARCHIVE),
    Reader("images_npy", ".npy", lambda: [npy(IMAGES), npy(IMAGES[..., None])], read_arrays, ARRAY),
    Reader("images_npz", ".npz", _images, read_arrays, ARCHIVE),
    Reader("kept_npz", ".npz", None, read_kept, ARCHIVE, _kept_file),
    Reader("kept_parts", ".sums", None, read_parts, BYTES, _parts),
    Reader("prior_npz", ".npz", _priors, read_guidance, ARCHIVE),
    Reader("prior_npy", ".npy", lambda: [npy(np.full((N, 3), 0.3)), npy(np.eye(3, dtype=np.float32)[LABELS])],
           read_guidance, ARRAY),
    Reader("subset_json", ".json", lambda: [_index(), _index(unsure=[1]), b"[3, 1, 2]"], read_subset, JSON),
    Reader("subset_csv", ".csv", lambda: [
        b"Index,ImageID\n7,7\n1,1\n", b"Index,ImageID,Pseudolabel\r\n3,3,1\r\n5,5,0\r\n",
    ], read_subset, TABLE),
    Reader("subset_npy", ".npy", lambda: [npy(np.arange(5)), npy(np.array([11, 0], np.uint8))], read_subset, ARRAY),
    Reader("overview_npz", ".npz", _overview, read_overview, ARCHIVE),
)  # fmt: skip
