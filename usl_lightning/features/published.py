"""Features of published networks, which look at the original images in the size they were trained for."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.images.files import open_files
from usl_lightning.data.images.folder_source import open_images
from usl_lightning.data.images.rendering import WHITE
from usl_lightning.data.images.source import ArraySource, ImageSource
from usl_lightning.data.passes import batch_that_fits, pass_over
from usl_lightning.features.extraction import extract
from usl_lightning.features.parts import Place
from usl_lightning.models.backbones import backbone_names, native_size, own_name
from usl_lightning.models.encoder import Encoder


def published_encoder(backbone: str | Sequence[str], *, projection: bool = False) -> Encoder:
    """A network of timm with its published weights, in evaluation mode, for RGB images of its own size.

    Args:
        backbone: a model name of timm, with or without the tag of its weights; or several, see `SideBySide`.
        projection: of one of CLIP's networks: its features are the image's embedding, as yet of any length.

    Raises:
        UslError: an unknown name, or weights that cannot be loaded; a projection of a network that has none.
    """
    name = ",".join(backbone_names(backbone))
    size, _ = native_size(name)
    return Encoder(name, ImageSpec(3, size, size, (), ()), pretrained=True, projection=projection).eval()


def beside_published(own: Encoder, backbone: str | Sequence[str]) -> Encoder:
    """A network that was trained here and published ones, side by side, in evaluation mode, see `SideBySide`.

    Args:
        own: the network; its weights are copied.
        backbone: see `published_encoder`.

    Raises:
        UslError: an unknown name, weights that cannot be loaded, or a checkpoint of several networks.
    """
    if "," in own.backbone:
        raise UslError(
            f"model.init_from: it holds '{own.backbone}', several networks already; leave model.backbone out"
        )
    names = backbone_names(backbone)
    size, _ = native_size(",".join(names))
    name = ",".join((own_name(own.backbone, own.image), *names))
    encoder = Encoder(name, ImageSpec(3, size, size, (), ()), pretrained=True).eval()
    first = {f"nets.0.{key}": value for key, value in own.net.state_dict().items()}
    encoder.net.load_state_dict({**encoder.net.state_dict(), **first, "mean0": own.mean, "std0": own.std})
    return encoder


def random_encoder(backbone: str | Sequence[str], image: ImageSpec) -> Encoder:
    """A network with random weights, always the same, in evaluation mode.

    Raises:
        UslError: an unknown name, or a network for images of another size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(",".join(backbone_names(backbone)), image).eval()


def seen_by(backbone: str | Sequence[str], source: ImageSource) -> ImageSource:
    """Images as a published network looks at them: RGB squares of its size, made from the originals.

    Raises:
        UslError: an unknown name, or a network without published weights.
    """
    return source.resized(*native_size(",".join(backbone_names(backbone))))


def source_features(
    encoder: Encoder,
    source: ImageSource,
    place: Place,
    *,
    workers: int | None = None,
    keep: bool = True,
    cache: str | Path | None = None,
    view: Callable[[Batch], Tensor] | None = None,
    sharded: bool = False,
) -> Tensor:
    """Features of all images of a source, float32 [n, d] in their order, on every process and its device.

    Of networks side by side each is looked through, and kept, by itself: another beside it changes nothing of it.

    Args:
        encoder: the network; moved to the device.
        source: the images, as the network looks at them.
        place: this process.
        workers: processes that read files; None: the cores, 8 at most.
        keep: on disk; a run that is killed goes on from where it was. Those of a view are not kept.
        cache: the folder to keep them in; None: $USL_CACHE, else ~/.cache/usl-lightning.
        view: what the network looks at instead of a batch's images.
        sharded: of this process's share of the images alone.

    Raises:
        UslError: an image that cannot be read, features that are not finite, or a folder that cannot be written.
    """
    size = batch_that_fits(source, place.device)

    def batches(first: int) -> Iterator[Tensor]:
        share = place.share(len(source))
        images = torch.arange(share.start, share.stop)
        loader = pass_over(source, images, size, workers=workers, first=first, pin=place.device.type == "cuda")
        return (batch.images if view is None else view(batch) for batch in loader)

    nets, kept = encoder.apart(), keep and view is None
    found = [extract(each, source, batches, size, place, keep=kept, cache=cache, sharded=sharded) for each in nets]
    return found[0] if len(nets) == 1 else torch.cat([F.normalize(each, dim=1) for each in found], 1)


def extract_features(
    images: ImageSource | Tensor | str | Path | Sequence[str | Path],
    backbone: str | Sequence[str] | Encoder,
    *,
    device: torch.device | str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    background: str = WHITE,
    workers: int | None = None,
    keep: bool = False,
    cache: str | Path | None = None,
) -> Tensor:
    """Features of any images, float32 [n, d] on the CPU, by the same path as those of a selection or a training.

    Args:
        images: uint8 [n, c, h, w]; a folder, whose images are taken in the order of their paths; files; or a source.
        backbone: model names of timm, or what `published_encoder` made of them.
        device: to compute on; None: a GPU if there is one.
        on_error: stop at an image of a folder that cannot be read, or leave it out and say so.
        background: what transparent pixels of files are laid on, as in the training.
        workers, keep, cache: see `source_features`.

    Raises:
        UslError: no such network or weights, an image that cannot be read, features that are not finite.
    """
    encoder = backbone if isinstance(backbone, Encoder) else published_encoder(backbone)
    place = Place(device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = seen_by(encoder.backbone, _source(images, on_error, background))
    return source_features(encoder, source, place, workers=workers, keep=keep, cache=cache).cpu()


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
