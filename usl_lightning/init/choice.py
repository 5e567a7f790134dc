"""Which features suit the images, by a sample of them and without a label: published ones, own training, or both.

Two figures decide. A view of an image, cut and tinted a little, should have the image's own neighbours: where published
features keep fewer of them than the pixels themselves do, by more than a standard error, these images are none that
the network knows, and features are learned here. Own training begins from pixels: where these tell what the published
features find alike (the information imbalance of Glielmo et al., PNAS Nexus 2022), the images are laid out so plainly
that a small network learns from them too, and both stand side by side.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import progress
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import Key, permutation
from usl_lightning.data.views import SimCLRView
from usl_lightning.features.published import published_encoder, seen_by
from usl_lightning.models.encoder import Encoder

BACKBONE = "tf_efficientnet_lite0"
"""The published network, which comes with the package."""

SAMPLE, NEIGHBOURS, BATCH = 250, 10, 25
"""Images that are looked at, neighbours of each that count, images at once."""

PLAIN = 0.3
"""Below this imbalance the pixels tell what is alike; 1 is chance."""

PIXELS = 16
"""Side of the images whose pixels are compared."""

Features = Literal["own", "published", "both"]


@dataclass(frozen=True)
class OwnNetwork:
    """What a run has trained without labels.

    Attributes:
        checkpoint: its file.
        encoder: loaded.
        source: the folder's images as it looks at them.
    """

    checkpoint: Path
    encoder: Encoder
    source: ImageSource


class Sample(NamedTuple):
    """Images that were looked at.

    Attributes:
        rows: int64 [n], which.
        features: [n, d], by the published network.
        pixels: [n, p], see `small`.
    """

    rows: Tensor
    features: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Choice:
    """What was measured on the images, and what follows.

    Attributes:
        features: what the chain is to work on.
        why: for people, a line for each thing that was measured.
        seconds: it took to bring an image to the published network's features.
        kept: share of its neighbours that an image's view still has.
        imbalance: of the pixels towards the published features: 0 if they tell all neighbours, 1 if none.
        backbone: the published network, or several with commas between them.
        dimensions: of its features.
        sample: what was looked at; None: there are no published features.
        own: a network that a run has trained already, which the chain takes instead of training one.
    """

    features: Features
    why: tuple[str, ...]
    seconds: float = 0.0
    kept: float = 0.0
    imbalance: float = 1.0
    backbone: str = BACKBONE
    dimensions: int = 1_280
    sample: Sample | None = None
    own: OwnNetwork | None = None


def choose_features(source: ImageSource, seed: int = 0, backbone: str | None = None) -> Choice:
    """Measure published features on a sample of the images, and decide.

    Without the published weights the choice is own training, and `why` says how to get them.

    Args:
        source: the images; their originals are looked at.
        seed: of the sample and of the views.
        backbone: the published network that was asked for, or several; None: the one that comes with the package.

    Raises:
        UslError: the network that was asked for has no weights here, or all images are the same.
    """
    name = backbone or BACKBONE
    try:
        encoder, seen = published_encoder(name), seen_by(name, source)
    except UslError as error:
        if backbone is not None:
            raise UslError(f"usl init: --backbone: {str(error).removeprefix('model.backbone: ')}") from error
        return Choice("own", (f"own training: {str(error).removeprefix('model.backbone: ')}",))
    rows = permutation(len(seen), seed, "choice of features")[:SAMPLE].sort().values
    view = SimCLRView(scale=(0.6, 1.0), strength=0.25, blur=0.0, flip=False)
    features, pixels = [], []
    spent = 0.0
    with progress("looking with published weights", len(rows), "img") as bar:
        for part in torch.split(rows, BATCH):
            start = time.perf_counter()
            images = seen.read(part)
            published = [look(encoder, images)]
            spent += time.perf_counter() - start
            changed = view(images, Key.of("choice of features", seed, slots=part))
            published.append(look(encoder, changed))
            features.append(torch.stack(published))
            pixels.append(torch.stack([small(images / 255), small(changed)]))
            for _ in part:
                bar.update()
    looked, seen_small = torch.cat(features, 1), torch.cat(pixels, 1)
    if bool((seen_small[0] == seen_small[0, 0]).all()):
        raise UslError(
            f"usl init: the {len(rows)} images that were looked at are all the same; expected different ones"
        )
    choice = decide(looked, seen_small, seconds=spent / len(rows))
    sample = Sample(rows, looked[0], seen_small[0])
    return replace(choice, backbone=name, dimensions=encoder.feature_dim, sample=sample)


def decide(features: Tensor, pixels: Tensor, *, seconds: float = 0.0) -> Choice:
    """The choice, by features [2, n, d] and pixels [2, n, p] of images and of a view of each.

    Args:
        features: of the published network.
        pixels: of the same.
        seconds: see `Choice`.
    """
    of_each = [kept_by_each(*each) for each in (features, pixels)]
    kept, by_pixels = (float(each.mean()) for each in of_each)
    lead = of_each[1] - of_each[0]
    unknown = float(lead.mean()) > float(lead.std()) / len(lead) ** 0.5  # more than chance makes of a few images
    imbalance = information_imbalance(pixels[0], features[0])
    chosen: Features = "own" if unknown else "both" if imbalance < PLAIN else "published"
    more = "fewer" if unknown else "more" if kept > by_pixels else "hardly fewer"
    plain = "they tell" if imbalance < PLAIN else "they do not tell"
    meant = {
        "own": "own training: the published network does not know such images",
        "published": "published features: they know more of these images than can be learned from them here",
        "both": "both side by side: the published network knows such images, and they are plain enough to learn from",
    }
    why = (
        f"{meant[chosen]}",
        f"a view of an image keeps {kept:.0%} of its neighbours by published features, {more} than by pixels, "
        f"{by_pixels:.0%}",
        f"imbalance of pixels towards published features {imbalance:.2f} (1: chance): {plain} what is alike",
    )
    return Choice(chosen, why, seconds, kept, imbalance)


def kept_neighbours(images: Tensor, views: Tensor, k: int = NEIGHBOURS) -> float:
    """The mean of `kept_by_each`."""
    return float(kept_by_each(images, views, k).mean())


def kept_by_each(images: Tensor, views: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """[n]: the share of each image's k nearest others, by cosine, that are among those of its view; by chance k/(n-1).

    Args:
        images: [n, d], of images.
        views: [n, d], of a view of each.
        k: neighbours, a quarter of the others at most.
    """
    k = max(1, min(k, (len(images) - 1) // 4))
    both = [_distances(each).topk(k, 1, largest=False).indices for each in (images, views)]
    return (both[0][:, :, None] == both[1][:, None]).any(2).double().mean(1)


def information_imbalance(a: Tensor, b: Tensor, k: int = 5) -> float:
    """Δ(A → B) of Glielmo et al., eq. 1: 2/n times the mean rank in B of each row's k nearest others in A, by cosine.

    0 if A tells the neighbours in B, 1 if it tells nothing.

    Args:
        a: [n, d].
        b: [n, d'], of the same rows.
        k: neighbours.
    """
    n = len(a)
    nearest = _distances(a).topk(max(1, min(k, n - 1)), 1, largest=False).indices
    ranks = _distances(b).argsort(dim=1, stable=True).argsort(1) + 1.0
    return float(2 / n * ranks.gather(1, nearest).mean())


def _distances(rows: Tensor) -> Tensor:
    """[n, n]: minus cosines; a row is far from itself."""
    x = F.normalize(rows.double(), dim=1)
    distances = -(x @ x.T)
    return distances.fill_diagonal_(2.0)


def small(images: Tensor) -> Tensor:
    """Images [b, c, h, w] in `PIXELS` a side, as rows."""
    return F.interpolate(images, (PIXELS, PIXELS), mode="area").flatten(1)


def look(encoder: Encoder, images: Tensor) -> Tensor:
    """Features [b, d] of images."""
    with torch.inference_mode():
        return encoder(images).float()
