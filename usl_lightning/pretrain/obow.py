"""OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning (Gidaris et al., CVPR 2021)."""

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views.crops import multi_crop
from usl_lightning.models.ema import EMA, target_decay
from usl_lightning.models.guesses import Ring, moving_average
from usl_lightning.models.heads import projection_mlp
from usl_lightning.models.maps import channels_of_maps, last_maps
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule

DISTANCE_MOMENTUM = 0.99
"""Of the mean distance of features and their nearest words, in the published code."""

FIRST_DISTANCE = 0.5
"""That mean before the first step."""

WINDOW = 3
"""Side of the squares of a map that are averaged to a new word."""


def words_and_distance(maps: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of the features at each place and each word, and of each image the mean of the smallest.

    Args:
        maps: [n, d, h, w].
        words: V, [K, d].

    Returns:
        [n, h·w, K], and [n].
    """
    features = maps.flatten(2).transpose(1, 2)
    squares = features.square().sum(2, keepdim=True) + words.square().sum(1)
    distances = (squares - 2 * features @ words.T).clamp(min=0)
    return distances, distances.amin(2).mean(1)


def bags_of_words(distances: Tensor, temperature: Tensor) -> Tensor:
    """Of each image how much of each word is in it: the most at any place, then scaled to the sum of 1 (Eqs. 2 to 4).

    Args:
        distances: squared, [n, places, K].
        temperature: δ, scalar, of the softmax of their negatives over the words.

    Returns:
        [n, K], each row a distribution.
    """
    most = (-distances / temperature).softmax(2).amax(1)
    return most / most.sum(1, keepdim=True)


def bag_loss(logits: Tensor, bags: Tensor) -> Tensor:
    """Cross-entropy of bags of words and what is told of them, less the bags' own entropy; a mean over views (Eq. 1).

    Args:
        logits: [views·n, K], view by view.
        bags: [n, K], each row a distribution; no gradient flows into them.
    """
    bags = bags.detach().repeat(len(logits) // len(bags), 1)
    return F.kl_div(logits.log_softmax(1), bags, reduction="batchmean")


class OBoW(PretrainModule):
    """From parts of an image it is told which visual words a slow copy of the network finds in the whole.

    The words are features of earlier images, one of each at a random place, so that they follow the network as it
    learns. What tells them is made of the words themselves, by an MLP, because they change with every step.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws the large parts of each image that are learned from.
        optimizer: how the weights are updated.
        teacher_view: draws the whole image that the words are found in; flipped alone in the paper. None: as `view`.
        views: of `view`, of each image; 2 in the paper.
        small_view: draws the small parts, of a size below that of `view`.
        small_views: how many of each image; 5 in the paper.
        words: K of each level.
        levels: of how many sizes of maps words are found, the last ones; 2 in the paper, 1 in its simpler version.
        sharpness: the temperature of the words is the mean squared distance of features and their nearest words,
            over this; 15 for ResNet-50 on ImageNet, 10 for ResNet-18.
        scale: κ of the logits; 8 and 5.
        momentum: α of the copy, in [0, 1); it rises to 1 by a cosine (`target_decay`).
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    ranges: ClassVar[Ranges] = {
        "views": whole(1),
        "small_views": whole(0),
        "words": whole(2),
        "levels": whole(1),
        "sharpness": above(0),
        "scale": above(0),
        "momentum": at_least(0, below=1),
    }

    distances: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        teacher_view: nn.Module | None = None,
        views: int = 2,
        small_view: nn.Module | None = None,
        small_views: int = 0,
        words: int = 8192,
        levels: int = 2,
        sharpness: float = 15.0,
        scale: float = 8.0,
        momentum: float = 0.99,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.teacher_view = view, view if teacher_view is None else teacher_view
        self.small_view, self.views, self.small_views = view if small_view is None else small_view, views, small_views
        self.sharpness, self.scale, self.momentum = sharpness, scale, momentum
        d, channels = self.encoder.feature_dim, channels_of_maps(self.encoder, levels)
        self.generators = nn.ModuleList(projection_mlp(c, 2 * d, d, output_norm=False) for c in channels)
        self.vocabularies = nn.ModuleList(Ring(words, c) for c in channels)
        for vocabulary in self.vocabularies:
            vocabulary.rows.copy_(torch.randn(vocabulary.rows.shape).clamp(min=0))  # type: ignore[operator, union-attr, arg-type]
        self.register_buffer("distances", torch.full((levels,), FIRST_DISTANCE))
        self.teacher = EMA(self.encoder, momentum, evaluated=False)

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder, with the teacher as a copy of it."""
        super().setup(stage)
        if stage == "fit":
            self.teacher.copy_from(self.encoder)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one global batch: a mean over levels, a sum over sizes of views (§3)."""
        crops = multi_crop(batch.images, batch.key, [self.view] * self.views, self.small_view, self.small_views)
        features = [full_precision(self.encoder(size)) for size in crops]
        words = [vocabulary.rows.clone() for vocabulary in self.vocabularies]  # type: ignore[operator, union-attr]
        weights = [
            F.normalize(full_precision(generator(F.normalize(own, dim=1))), dim=1)
            for generator, own in zip(self.generators, words, strict=True)
        ]
        with torch.no_grad():
            whole_view = self.teacher_view(batch.images, batch.key.fold("teacher"))
            maps = last_maps(self.teacher.module, whole_view, len(words))  # type: ignore[arg-type]
        with torch.autocast(batch.images.device.type, enabled=False):
            bags = [self._bags(level, full_precision(each), batch.key) for level, each in enumerate(maps)]
            losses = [
                bag_loss(self.scale * size @ weight.T, bag)
                for size in features
                for weight, bag in zip(weights, bags, strict=True)
            ]
            loss = torch.stack(losses).sum() / len(words)
        in_use = torch.special.entr(gather(bags[-1]).mean(0)).sum().exp()
        self.log_training(*torch.split(features[0], len(batch))[:2], loss=loss, words_in_use=in_use)
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the teacher: both are in any checkpoint made after it."""
        step = self.trainer.global_step
        optimizer.step(closure=optimizer_closure)
        self.teacher.decay = target_decay(step, self.trainer.max_steps, self.momentum)
        self.teacher.update(self.encoder)

    @torch.no_grad()
    def _bags(self, level: int, maps: Tensor, key: Key) -> Tensor:
        """Bags of the words there are, [b, K]; then the newest words take the place of the oldest.

        Args:
            level: of the maps.
            maps: the teacher's, [b, d, h, w].
            key: of the b slots.
        """
        vocabulary: Ring = self.vocabularies[level]  # type: ignore[assignment]
        inner = inside(maps)
        distances, nearest = words_and_distance(inner, vocabulary.rows.to(maps.dtype))
        mean = moving_average(self.distances[level], gather(nearest).mean(), momentum=DISTANCE_MOMENTUM)
        self.distances[level] = mean
        vocabulary.write(gather(new_words(inner, key.fold("word", level))))
        return bags_of_words(distances, mean.to(maps.dtype) / self.sharpness)


def inside(maps: Tensor) -> Tensor:
    """Maps [n, d, h, w] without their borders, which padding has blurred, where enough is left to draw words from."""
    return maps[:, :, 1:-1, 1:-1] if min(maps.shape[2:]) >= WINDOW + 2 else maps


def new_words(maps: Tensor, key: Key) -> Tensor:
    """The mean of a 3×3 square of each map at a random place, [n, d]; of smaller maps, of as much as there is.

    Args:
        maps: [n, d, h, w].
        key: of the n slots.
    """
    window = (min(WINDOW, maps.shape[2]), min(WINDOW, maps.shape[3]))
    means = F.avg_pool2d(maps, window, stride=1).flatten(2)
    places = key.integers(1, means.shape[2])[:, :, None].expand(-1, means.shape[1], -1)
    return means.gather(2, places)[:, :, 0]
