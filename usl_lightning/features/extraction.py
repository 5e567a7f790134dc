"""A network's features of all images: each process its share, kept on disk, continued after a kill."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import progress
from usl_lightning.base.version import __version__
from usl_lightning.compute.device import keep_freed_memory
from usl_lightning.compute.distributed import gather_uneven
from usl_lightning.data.images.source import ImageSource
from usl_lightning.features.kept import PARTS, kept_or_made, kept_or_made_share
from usl_lightning.features.parts import PartFile, Place
from usl_lightning.models.encoder import Encoder
from usl_lightning.vectors.distances import check_features
from usl_lightning.vectors.memory import check_memory

log = logging.getLogger(__name__)

Batches = Callable[[int], Iterable[Tensor]]
"""From the number of the first batch to the batches from there on, of this process's share: uint8 [b, c, h, w]."""

_SAMPLED = 64  # evenly spaced files whose pixels count, not their names and sizes alone


def extract(
    encoder: Encoder,
    source: ImageSource,
    batches: Batches,
    batch_size: int,
    place: Place,
    *,
    keep: bool = True,
    cache: str | Path | None = None,
    sharded: bool = False,
) -> Tensor:
    """Features of all images, float32 [n, d] in their order, on every process and its device.

    Args:
        encoder: the network; moved to the device.
        source: the images.
        batches: how this process reads its share of them.
        batch_size: images in each batch but the last.
        place: this process.
        keep: in a file, see `kept_or_made`; else they are computed here and now.
        cache: the folder of the file; None: $USL_CACHE, else ~/.cache/usl-lightning.
        sharded: of this process's share alone, see `kept_or_made_share`.

    Raises:
        UslError: features that are not finite (names the images; of a share they are not looked at), or a folder that
            cannot be written or is full.
    """
    n, width, share = len(source), encoder.feature_dim, place.share(len(source))

    def make_share(folder: Path) -> Tensor:
        with PartFile(folder / f"{share.start}-{share.stop}.f32", width, batch_size, n) as part:
            if part.done:
                log.info("features: continued after %d of %d images", part.done, len(share))
            for rows in _computed(encoder, batches(part.done // batch_size), place, len(share), part.done):
                part.append(rows)
            return part.read()

    def make(path: Path) -> Tensor:
        parts = path.with_suffix(PARTS)
        features = gather_uneven(make_share(parts).to(place.device))
        try:
            return check_features(features)
        except UslError:
            shutil.rmtree(parts, ignore_errors=True)
            raise

    if sharded:
        check_memory(3 * 4 * width * len(share), f"features of {len(share)} images, {width} numbers each")
        about = features_about(encoder, source, place)
        return kept_or_made_share("features", about, (n, width), make_share, place, cache=cache)
    check_memory(3 * 4 * width * n, f"features of {n} images, {width} numbers each")  # gathered, and in unit rows
    if keep:
        return kept_or_made("features", features_about(encoder, source, place), make, place, cache=cache)
    with torch.inference_mode(False):
        own = [torch.empty(0, width), *(rows.cpu() for rows in _computed(encoder, batches(0), place, len(share)))]
        return check_features(gather_uneven(torch.cat(own).to(place.device)))


def _computed(encoder: Encoder, batches: Iterable[Tensor], place: Place, total: int, done: int = 0) -> Iterator[Tensor]:
    """Features [b, d] of each batch, in evaluation mode and without gradient, with a bar of the `total` images."""
    if place.device.type == "cpu":
        keep_freed_memory()  # of EfficientNet-Lite0 at 224 pixels, page faults are half of the time
    training = encoder.training
    encoder.to(place.device).eval()
    try:
        with progress(f"features of {encoder.backbone}", total, "image", done=done) as bar:
            for images in batches:
                with torch.no_grad(), place.autocast():
                    features = encoder(images.to(place.device, non_blocking=True))
                yield features.float()
                bar.update(len(features))
    finally:
        encoder.train(training)


def features_about(encoder: Encoder, source: ImageSource, place: Place) -> dict[str, Any]:
    """All that the features of `source` depend on; JSON can hold it."""
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
        "pixels": _sample(source),
        "precision": place.precision,
    }


def _sample(source: ImageSource) -> str:
    """A hash of a few images: other files may have the same names and sizes, uncompressed ones often do."""
    n = min(len(source), _SAMPLED)
    digest = hashlib.sha256()
    for images in source.read_batches(torch.split(torch.arange(n) * len(source) // n, 8)):
        digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
