"""Which features suit the images, by labels that people have given: cross-validation of the chain's own classifier.

Labels speak for features by which each is likely while it is held out. Few labels speak softly: the choice that was
made without them stands unless they are likelier by others, all together, by `doubt` nats. That grows with their
number: where labels were chosen to lie apart in the features in use, held-out ones are harder to tell by these alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import progress
from usl_lightning.chain.naming import own_training_in
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import read_labels
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import permutation
from usl_lightning.features.published import published_encoder, seen_by
from usl_lightning.init.choice import BATCH, PIXELS, Choice, Features, OwnNetwork, look, small
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import Encoder, load_encoder
from usl_lightning.semisup.blend import Blend

FEWEST, MOST = 10, 500
"""Labels that a decision needs, of those whose class has another; and that it looks at, drawn where there are more."""

DOUBT, OF_EACH = 4.0, 0.1
"""Nats by which labels have to be likelier by other features than by those chosen without them: at least; of each."""

NAMES: dict[Features, str] = {"own": "own training", "published": "published features", "both": "both side by side"}

LEAST = 1e-3
"""Probability of a label below which it counts no more against features."""

Kind = Features | Literal["pixels"]
"""Features that labels are told by."""

Opened = Callable[..., ImageSource]
"""The folder's images, by their size and channels."""


@dataclass(frozen=True)
class Given:
    """Labels that are there already.

    Attributes:
        index: of this folder's images, with at least one label.
        own: trained by the run that they are of; None: it has trained nothing that these images could be looked at by.
    """

    index: LabelIndex
    own: OwnNetwork | None = None

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Images and their labels, int64 [m], in the order of the images; `MOST` at most."""
        index = self.index
        known = [(i, label) for i, label in zip(index.indices, index.labels, strict=True) if label is not None]
        few = permutation(len(known), 0, "labels to choose by")[:MOST].tolist()
        rows, labels = torch.tensor(sorted(known[i] for i in few)).T
        return rows, labels


def read_given(path: Path, images: Opened, *, channels: int, anew: bool) -> Given:
    """The labels in a file, and what their run has trained.

    Args:
        path: of a label index.
        images: those that the labels have to be of.
        channels: of them.
        anew: own training is to be repeated, whatever the run has.

    Raises:
        UslError: the file is damaged, of other images, or has no label.
    """
    index = read_labels(str(path), images(image_size=1, channels=3))
    if all(label is None for label in index.labels):
        raise UslError(f"usl init: {path}: none of its {len(index)} images has a label yet; usl label {path}")
    run = path.resolve().parent.parent
    checkpoint = None if anew or not (run / "run.json").exists() else own_training_in(run)
    return Given(index, None if checkpoint is None else _own(checkpoint, images, channels))


def _own(checkpoint: Path, images: Opened, channels: int) -> OwnNetwork | None:
    """The network of a checkpoint, if the images are still of its kind."""
    encoder = load_encoder(checkpoint)
    image = encoder.image
    try:
        source = images(image_size=image.height if image.height == image.width else None, channels=channels)
    except UslError:  # they have several sizes now
        return None
    same = (source.channels, source.height, source.width) == (image.channels, image.height, image.width)
    return OwnNetwork(checkpoint, encoder, source) if same else None


def decide_by_labels(choice: Choice, given: Given, source: ImageSource) -> Choice:
    """The choice that labels lead to, by cross-validation on them and on the sample that was looked at.

    Args:
        choice: made without them.
        given: the labels, and the own features there are; without these pixels stand for them, which can only speak
            for own training instead of published features.
        source: the images; their originals are looked at.
    """
    rows, labels = given.labelled()
    own, counts = given.own, _enough(labels)
    without = replace(choice, own=None if choice.features == "published" else own)
    if choice.sample is None:
        return without
    if not int(counts.sum()) >= FEWEST:
        few = f"{len(labels)} labels are too few to decide by, {FEWEST} whose class has another are needed"
        return replace(without, why=(*choice.why, few))
    sample = choice.sample
    more = rows[~torch.isin(rows, sample.rows)]
    features, pixels = _looked(published_encoder(choice.backbone), seen_by(choice.backbone, source), more)
    kinds: dict[Kind, Tensor] = {"published": torch.cat([sample.features, features])}
    if own is None:
        kinds["pixels"] = torch.cat([sample.pixels, pixels])
    else:
        kinds["own"], _ = _looked(own.encoder, own.source, torch.cat([sample.rows, more]))
        kinds["both"] = torch.cat([F.normalize(kinds[kind], dim=1) for kind in ("own", "published")], 1)
    place = (torch.cat([sample.rows, more]) == rows[:, None]).int().argmax(1)
    classes = given.index.classes or tuple(map(str, range(int(labels.max()) + 1)))
    told = {kind: held_out(x, place, labels, classes)[counts] for kind, x in kinds.items()}
    found, said = decided(told, labels[counts], "published" if own is None else choice.features)
    if own is None:
        said = (*said, "own features are not there yet: pixels, which they begin from, stand for them")
    chosen: Features = choice.features
    if found == "pixels":
        chosen = "own" if choice.features == "published" else choice.features
    elif own is not None:
        chosen = found
    reason = choice.why[0]
    if chosen != choice.features:
        reason = f"{NAMES[chosen]}: labels speak against {NAMES[choice.features]}, which were chosen without them"
    own = None if chosen == "published" else own
    taken = () if own is None else (f"own features are those of {own.checkpoint.parent.parent}",)
    return replace(choice, features=chosen, why=(reason, *said, *taken, *choice.why[1:]), own=own)


def likelihood(told: Tensor, labels: Tensor) -> float:
    """The logarithm of the probability of all labels [m] by what was told of each, [m, c]: at most 0, in nats."""
    return float(told.gather(1, labels[:, None]).clamp_min(LEAST).log().sum())


def decided(told: Mapping[Kind, Tensor], labels: Tensor, without: Kind) -> tuple[Kind, tuple[str, ...]]:
    """The features that labels speak for, and by how much.

    Args:
        told: of each kind, the probability of each class for each label while it was held out, [m, c].
        labels: int64 [m].
        without: those that were chosen without labels.
    """
    likely, doubt = {kind: likelihood(each, labels) for kind, each in told.items()}, max(DOUBT, OF_EACH * len(labels))
    ahead = {kind: each - likely[without] for kind, each in likely.items()}
    other = max((kind for kind in ahead if kind != without), key=lambda kind: ahead[kind])
    shares = ", ".join(f"{kind} {_right(each, labels):.0%}" for kind, each in told.items())
    said = (
        f"of {len(labels)} labels, each held out in turn, are told rightly: {shares}",
        f"likelihood of the labels by {other}: {ahead[other]:+.1f} nats beside {without}; above {doubt:.1f} it decides",
    )
    return (other if ahead[other] > doubt else without), said


def held_out(features: Tensor, rows: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Tensor:
    """The probability of each class for each label while it is held out: [m, c], rows of sum 1.

    Args:
        features: [n, d], of the labelled images and of others that stand for the rest.
        rows: int64 [m], those that are labelled.
        labels: int64 [m], of two classes or more.
        classes: names of all c.
    """
    model = Blend(image=ImageSpec(3, 1, 1, (), (), classes), features="at hand")
    model.learn_from(features, rows, labels, seed=0)
    assert model.held_out is not None
    return model.held_out.probabilities


def _enough(labels: Tensor) -> Tensor:
    """Which labels folds can tell something of: those whose class has another, bool [m]; none if all are of one."""
    return (torch.bincount(labels)[labels] > 1) & bool((labels != labels[0]).any())


def _right(told: Tensor, labels: Tensor) -> float:
    return float((told.argmax(1) == labels).float().mean())


def _looked(encoder: Encoder, seen: ImageSource, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Features [m, d] of some images, and their pixels, see `small`."""
    features, pixels = [torch.empty(0, encoder.feature_dim)], [torch.empty(0, seen.channels * PIXELS**2)]
    with progress("looking at labelled images", len(rows), "img") as bar:
        for part in torch.split(rows, BATCH):
            images = seen.read(part)
            features.append(look(encoder, images))
            pixels.append(small(images / 255))
            for _ in part:
                bar.update()
    return torch.cat(features), torch.cat(pixels)
