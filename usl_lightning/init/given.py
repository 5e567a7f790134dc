"""Which features suit the images, by labels that people have given: cross-validation of the chain's own classifier.

Labels speak for features by which each is likely while it is held out. Few labels speak softly: the choice that was
made without them stands unless they are likelier by others, all together, by `DOUBT` nats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

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
from usl_lightning.init.choice import BATCH, Choice, Features, OwnNetwork, look
from usl_lightning.labels import LabelIndex
from usl_lightning.models.encoder import Encoder, load_encoder
from usl_lightning.semisup.blend import Blend

FEWEST, MOST = 10, 500
"""Labels that a decision needs, of those whose class has another; and that it looks at, drawn where there are more."""

DOUBT = 4.0
"""Nats by which labels have to be likelier by other features than by those that were chosen without them."""

LEAST = 1e-3
"""Probability of a label below which it counts no more against features."""

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
        given: the labels, and the own features there are; without these, labels say only how good published ones are.
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
    sample, features = choice.sample
    more = rows[~torch.isin(rows, sample)]
    seen = torch.cat([sample, more])
    encoder = published_encoder(choice.backbone)
    kinds: dict[Features, Tensor] = {
        "published": torch.cat([features, _looked(encoder, seen_by(choice.backbone, source), more)])
    }
    if own is not None:
        kinds["own"] = _looked(own.encoder, own.source, seen)
        kinds["both"] = torch.cat([F.normalize(kinds[kind], dim=1) for kind in ("own", "published")], 1)
    place = (seen == rows[:, None]).int().argmax(1)
    classes = given.index.classes or tuple(map(str, range(int(labels.max()) + 1)))
    told = {kind: held_out(x, place, labels, classes)[counts] for kind, x in kinds.items()}
    if own is None:
        right = f"published features are right for {_right(told['published'], labels[counts]):.0%} of"
        none = "own ones are not there to compare: so it was decided without labels"
        return replace(without, why=(*choice.why, f"{right} {len(counts)} labels, each held out in turn; {none}"))
    features_, why = decided(told, labels[counts], choice.features)
    return replace(
        choice, features=features_, why=(*why, *choice.why[1:]), own=None if features_ == "published" else own
    )


def decided(told: Mapping[Features, Tensor], labels: Tensor, without: Features) -> tuple[Features, tuple[str, str]]:
    """The features that labels speak for, and why.

    Args:
        told: of each kind, the probability of each class for each label while it was held out, [m, c].
        labels: int64 [m].
        without: the choice that was made without labels.
    """
    likely = {kind: float(each.gather(1, labels[:, None]).clamp_min(LEAST).log().sum()) for kind, each in told.items()}
    best = max(likely, key=lambda kind: likely[kind] + (DOUBT if kind == without else 0.0))
    names: dict[Features, str] = {"own": "own training", "published": "published features", "both": "both side by side"}
    ahead = max(value for kind, value in likely.items() if kind != without) - likely[without]
    rather = f"chosen without labels, which speak for nothing else by {DOUBT:g} nats or more"
    if best != without:
        rather = f"{len(labels)} labels are likelier by {ahead:.1f} nats than by {names[without]}, chosen without them"
    shares = ", ".join(f"{kind} {_right(told[kind], labels):.0%}" for kind in names)
    return best, (f"{names[best]}: {rather}", f"right for {len(labels)} labels, each held out in turn: {shares}")


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


def _looked(encoder: Encoder, seen: ImageSource, rows: Tensor) -> Tensor:
    """Features of some images, [m, d]."""
    found = [torch.empty(0, encoder.feature_dim)]
    with progress("looking at labelled images", len(rows), "img") as bar:
        for part in torch.split(rows, BATCH):
            found.append(look(encoder, seen.read(part)))
            for _ in part:
                bar.update()
    return torch.cat(found)
