"""Features of published networks, each looking at the original images in the size it was trained for."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.drawing import Pass
from usl_lightning.data.images.decode import Interpolation
from usl_lightning.data.images.files import open_files
from usl_lightning.data.images.folder_source import open_images
from usl_lightning.data.images.rendering import WHITE
from usl_lightning.data.images.source import ArraySource, ImageSource
from usl_lightning.data.sampling import StepLoader
from usl_lightning.features.extraction import extract
from usl_lightning.features.place import Place
from usl_lightning.models.backbones import native_size
from usl_lightning.models.encoder import Encoder

_PER_CORE, _ON_GPU = 16, 256
"""Images of 224 pixels in a batch: on a CPU what its caches can follow, for each thread; on a GPU what fills it."""


def backbone_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """The networks that a parameter `backbone` names: one, several with commas between them, or a list.

    Raises:
        UslError: none, or one of them twice.
    """
    listed = given.split(",") if isinstance(given, str) else given
    names = tuple(name.strip() for name in listed)
    if not names or not all(names) or len(set(names)) < len(names):
        raise UslError(f"model.backbone: {given!r}; expected names of networks with commas between them, each once")
    return names


def published_encoder(backbone: str, image: ImageSpec, *, pretrained: bool = True) -> Encoder:
    """A network of timm with its published weights, in evaluation mode; images are normalised as it was trained.

    Args:
        backbone: a model name of timm, with or without the tag of its weights.
        image: the images it is to look at.
        pretrained: False: random weights (always the same), and the statistics of the images.

    Raises:
        UslError: an unknown name, a network for images of another size, or weights that cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(backbone, image, pretrained=pretrained).eval()


class _Network(NamedTuple):
    """A network, and how images are brought to its size; without an interpolation it takes them as they are."""

    encoder: Encoder
    interpolation: Interpolation | None


class PublishedFeatures:
    """Published networks side by side.

    Each looks at RGB squares of its own size, made from the original images whatever size a training takes; a grey
    image is three equal channels. Its features are brought to length 1, so that all count the same.

    Args:
        backbones: model names of timm, or one with commas between them.
        image: the images at hand; only for random weights.
        pretrained: False: random weights (always the same), on the images as they are given.

    Attributes:
        feature_dim: d, of all together.

    Raises:
        UslError: see `create_backbone`.
    """

    def __init__(
        self, backbones: str | Sequence[str], image: ImageSpec | None = None, *, pretrained: bool = True
    ) -> None:
        self._networks = []
        for name in backbone_names(backbones):
            if pretrained:
                size, interpolation = native_size(name)
                seen = ImageSpec(3, size, size, (), ())
                self._networks.append(_Network(published_encoder(name, seen), interpolation))
            else:
                assert image is not None, "random weights are for images of a given size"
                self._networks.append(_Network(published_encoder(name, image, pretrained=False), None))
        self.feature_dim = sum(network.encoder.feature_dim for network in self._networks)

    def of(
        self,
        source: ImageSource,
        *,
        place: Place | None = None,
        workers: int | None = None,
        keep: bool = True,
        cache: str | Path | None = None,
    ) -> Tensor:
        """Features of all images, float32 [n, d] in their order, on every process and its device.

        Args:
            source: the images; new ones are treated just as those of a training.
            place: the process; None: this one alone, on the CPU.
            workers: processes that read files; None: the cores, 8 at most.
            keep: on disk, network by network; a run that is killed goes on from where it was.
            cache: the folder to keep them in; None: $USL_CACHE, else ~/.cache/usl-lightning.

        Raises:
            UslError: an image that cannot be read, features that are not finite, or a folder that cannot be written.
        """
        place, parts = place or Place(), []
        for encoder, interpolation in self._networks:
            seen = source if interpolation is None else source.resized(encoder.image.height, interpolation)
            reading = _Reading(seen, place, workers)
            part = extract(encoder, seen, reading.batches, reading.batch_size, place, keep=keep, cache=cache)
            parts.append(F.normalize(part, dim=1))
        return torch.cat(parts, dim=1)


class _Reading:
    """The batches of a process's share of the images; files are decoded by worker processes."""

    def __init__(self, source: ImageSource, place: Place, workers: int | None) -> None:
        self._source, self._place, self._workers = source, place, workers
        full = _ON_GPU if place.device.type == "cuda" else min(_ON_GPU, _PER_CORE * torch.get_num_threads())
        self.batch_size = max(1, round(full * min(1, 224**2 / (source.height * source.width))))

    def batches(self, first: int) -> Iterator[Tensor]:
        source, share, size = self._source, self._place.share(len(self._source)), self.batch_size
        stop = -(-len(share) // size)
        workers = 0 if source.files is None else min(8, os.cpu_count() or 1) if self._workers is None else self._workers
        loader = StepLoader(
            Pass(source, source.labels, torch.arange(share.start, share.stop), size, 0, source.split),
            first=lambda: first,
            stop=stop,
            workers=min(workers, stop - first),
            pin=self._place.device.type == "cuda",
        )
        return (batch.images for batch in loader)


def extract_features(
    images: ImageSource | Tensor | str | Path | Sequence[str | Path],
    backbones: str | Sequence[str] | PublishedFeatures,
    *,
    device: torch.device | str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    background: str = WHITE,
    workers: int | None = None,
    keep: bool = False,
    cache: str | Path | None = None,
) -> Tensor:
    """Features of any images, float32 [n, d] on the CPU, by the same path as those of a selection and a training.

    Args:
        images: uint8 [n, c, h, w]; a folder, whose images are taken in the order of their paths; files; or a source.
        backbones: see `PublishedFeatures`; one that is there already is not loaded again.
        device: to compute on; None: a GPU if there is one.
        on_error: stop at an image of a folder that cannot be read, or leave it out and say so.
        background: what transparent pixels of files are laid on, as in the training.
        workers, keep, cache: see `PublishedFeatures.of`.

    Raises:
        UslError: no such network or weights, an image that cannot be read, features that are not finite.
    """
    networks = backbones if isinstance(backbones, PublishedFeatures) else PublishedFeatures(backbones)
    place = Place(device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = _source(images, on_error, background)
    return networks.of(source, place=place, workers=workers, keep=keep, cache=cache).cpu()


def _source(
    images: ImageSource | Tensor | str | Path | Sequence[str | Path],
    on_error: Literal["fail", "skip"],
    background: str,
) -> ImageSource:
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, Tensor):
        return ArraySource(images, torch.full((len(images),), -1), name="images", split="all")
    if isinstance(images, str | Path):  # of any size: each network reads them in its own
        return open_images(str(images), image_size=1, channels=3, on_error=on_error, background=background)
    return open_files(images, image_size=1, channels=3, background=background)
