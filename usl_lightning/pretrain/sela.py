"""SeLa: Self-labelling via simultaneous clustering and representation learning (Asano et al., 2020)."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from usl_lightning.base.arrays import load_array
from usl_lightning.base.atomic import atomic_path
from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather_uneven
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import derive_seed, permutation
from usl_lightning.data.modules import ImageData
from usl_lightning.evaluation.clusters import adjusted_mutual_information, class_entropies, cluster_metrics
from usl_lightning.evaluation.features import FeatureReport, Features
from usl_lightning.evaluation.knn import knn_accuracy
from usl_lightning.models.turning import TURNS, check_square, turned_views, turning_loss
from usl_lightning.pretrain.pretrain_module import NetworkOptions, PretrainModule
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.sinkhorn import balanced_labels, sinkhorn_labels

__all__ = [
    "SeLa",
    "first_labels",
    "label_entropy",
    "reassignment_steps",
    "renumbered",
    "self_label_loss",
    "sinkhorn_labels",
]

log = logging.getLogger(__name__)

Schedule = Literal["log", "quadratic", "linear"]
Labelling = Literal["sinkhorn", "kmeans"]

ROWS = 8192
"""Images whose logits are held at once when the heads are measured."""

CLUSTER_ITERATIONS = 20
"""Of k-means in place of Sinkhorn-Knopp, as in DeepCluster."""


def self_label_loss(logits: Tensor, labels: Tensor, clusters: Sequence[int]) -> Tensor:
    """Cross-entropy with the self-labels, averaged over the images and the heads (Eq. 1, §3.5).

    Args:
        logits: of all heads beside each other, [b, ΣK].
        labels: int64 [H, b], row h from 0 to clusters[h] - 1.
        clusters: K of each head.

    Returns:
        A scalar in float32 or better.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = [
        F.cross_entropy(head, own) for head, own in zip(torch.split(wide, list(clusters), 1), labels, strict=True)
    ]
    return torch.stack(losses).mean()


def first_labels(count: int, clusters: Sequence[int], seed: int) -> Tensor:
    """Balanced random labels, int64 [H, count]: in each head every label occurs equally often, to within one."""
    return torch.stack([permutation(count, seed, "self-labels", head) % k for head, k in enumerate(clusters)])


def reassignment_steps(max_steps: int, count: int, schedule: Schedule) -> tuple[int, ...]:
    """The steps at whose beginning the labels are reassigned: `count` of them, the first at step 0.

    The i-th, i = 0 … count - 1, is at this share u of the training, or a step after the one before:
        log: (count^(i/count) − 1) / (count − 1), so that the pauses grow by the same factor from one to the next
            (another reading of "a logarithmic distribution", appendix A.1).
        quadratic: (i/count)², the published code for ImageNet, which calls it exponential; the paper's text seen from
            the other side, as the share of the training at which the i-th comes. (Its `nopts` counts one more, which
            would come after the end.)
        linear: i/count, the published code for CIFAR.

    Args:
        max_steps: steps of the whole training.
        count: how often; no more than once a step.
        schedule: "log", "quadratic" or "linear".
    """
    count = min(count, max_steps)
    steps: list[int] = []
    for i in range(count):
        u = i / count
        if schedule == "log":
            u = (count**u - 1) / (count - 1) if count > 1 else 0.0
        elif schedule == "quadratic":
            u = u * u
        steps.append(max(int(u * max_steps), steps[-1] + 1 if steps else 0))
    return tuple(steps)


def renumbered(labels: Tensor, before: Tensor, count: int) -> Tensor:
    """The same groups, numbered so that as many images as can be have the number that they had before.

    Args:
        labels, before: int64 [n], in {0, …, count - 1}.
        count: of the numbers, K.
    """
    overlap = torch.bincount(labels * count + before, minlength=count * count).view(count, count)
    _, numbers = linear_sum_assignment(overlap.cpu().numpy(), maximize=True)
    return torch.from_numpy(numbers).to(labels)[labels]


def label_entropy(self_labels: Tensor, classes: Tensor) -> float:
    """Entropy in nats of the true classes within a self-label, averaged over the self-labels (appendix A.2).

    0 where every self-label is of one class. For reports only.

    Args:
        self_labels: integers [n], ≥ 0.
        classes: integers [n], ≥ 0.
    """
    return float(class_entropies(self_labels, classes).nanmean())


def add_agreement(report: FeatureReport, labels: Tensor, classes: Tensor) -> None:
    """Add how self-labels agree with the true classes, means over the heads: NMI, adjusted Rand index, adjusted MI.

    Args:
        report: is added to.
        labels: int64 [H, n], of test images.
        classes: int64 [n]; images labelled -1 do not count.
    """
    found = [cluster_metrics(own, classes) for own in labels]
    note = f"the likeliest labels of {len(classes)} test images, mean of the heads ({len(labels)})"
    for name in ("nmi", "ari"):
        report.add(f"head_{name}", float(np.mean([each[name] for each in found])), note)
    adjusted = [adjusted_mutual_information(own, classes) for own in labels]
    report.add("head_ami", float(np.mean(adjusted)), f"{note}, beyond chance")


class SeLa(PretrainModule):
    """Alternates between learning the images' current labels and assigning them anew, equally many to each label.

    A reassignment takes the network's predictions of all images and balances those of each head by Sinkhorn-Knopp.
    The predictions are of one random view of each image, as in the published code, by the network in evaluation
    mode. There the published code stays in training mode; here an image's label must not depend on which images
    share its batch, on the batch size of the pass, or on the number of processes.

    Args:
        image: channels, size and statistics of the images; the command line takes it from the data.
        view: draws a view of each image, in training and for a reassignment.
        optimizer: how the weights are updated.
        heads: H, the labellings learned side by side.
        clusters: K, the labels of each head; a list gives every head its own number.
        hidden_dims: widths of layers between the encoder and the heads, each with dropout 0.5 before and ReLU
            behind; none by default. AlexNet's fully connected layers are [4096, 4096].
        power: λ of Sinkhorn-Knopp; 25 in the paper, 10 for small sets.
        tolerance: where Sinkhorn-Knopp ends, see `sinkhorn_labels`; 0.1 in the published code, 0.01 for small sets.
        reassignments: how often the labels are reassigned during the training; 0 keeps the first ones.
        schedule: when: "quadratic", "linear" or "log", see `reassignment_steps`.
        labelling: "sinkhorn", or "kmeans": the labels of each head are clusters of what the heads are applied to, of
            any size, from starting points of its own (Table 8). `power` and `tolerance` then do not apply.
        labels_file: labels to start from and to keep ("label transfer", §4.3): the `self_labels.npy` of another
            run on the same images with the same heads and clusters. `reassignments` then does not apply.
        labels_head: the head of that run, from 0, whose labels the one head of this one learns; None: all of them.
        rotation_weight: of RotNet's loss beside the other ("+Rot"): the encoder also tells how far images are turned.
        network: the network, what it starts from, and its monitor: see `PretrainModule`.
    """

    up_to_images = ("clusters",)
    ranges: ClassVar[Ranges] = {
        "heads": whole(1),
        "clusters": whole(1),
        "hidden_dims": whole(1),
        "power": above(0),
        "tolerance": above(0),
        "reassignments": whole(0),
        "labels_head": whole(0),
        "rotation_weight": at_least(0),
    }
    revision: int = 2

    labels: Tensor
    reassigned: Tensor

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        heads: int = 10,
        clusters: int | list[int] = 128,
        hidden_dims: list[int] | None = None,
        power: float = 25.0,
        tolerance: float = 0.1,
        reassignments: int = 80,
        schedule: Schedule = "quadratic",
        labelling: Labelling = "sinkhorn",
        labels_file: str | None = None,
        labels_head: int | None = None,
        rotation_weight: float = 0.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        if rotation_weight:
            check_square(image, "SeLa's rotation_weight")
        super().__init__(image, optimizer, **network)
        self.view, self.rotation_weight = view, rotation_weight
        self.clusters = _clusters(heads, clusters)
        self.power, self.tolerance, self.schedule = power, tolerance, schedule
        self.labelling, self.labels_head = labelling, labels_head
        self.labels_file, self.reassignments = labels_file, 0 if labels_file else reassignments
        widths = [self.encoder.feature_dim, *(hidden_dims or [])]
        layers = [(nn.Dropout(), nn.Linear(a, b), nn.ReLU(inplace=True)) for a, b in itertools.pairwise(widths)]
        self.hidden = nn.Sequential(*(module for layer in layers for module in layer))
        self.head = nn.Linear(widths[-1], sum(self.clusters))
        self.rotation = nn.Linear(self.encoder.feature_dim, TURNS) if rotation_weight else None
        self.register_buffer("labels", torch.zeros(heads, image.count, dtype=torch.long))
        self.register_buffer("reassigned", torch.tensor(0))
        self._steps: tuple[int, ...] = ()
        self._done = 0

    def setup(self, stage: str) -> None:
        """The first labels; those of a checkpoint being resumed are loaded after this and win."""
        super().setup(stage)
        if stage != "fit":
            return
        count = self.labels.shape[1]
        if max(self.clusters) > count:
            raise UslError(f"model.clusters: {max(self.clusters)} labels for {count} images; use at most {count}")
        if self.labels_file:
            self.labels.copy_(read_self_labels(self.labels_file, self.clusters, count, self.labels_head))
        else:
            self.labels.copy_(first_labels(count, self.clusters, self._data.seed))

    def on_train_start(self) -> None:
        """Where in the schedule the run stands; asked once, so that no step waits for the device."""
        self._steps = reassignment_steps(self.trainer.max_steps, self.reassignments, self.schedule)
        if len(self._steps) < self.reassignments:
            log.info("SeLa: %d reassignments instead of %d, of as many steps", len(self._steps), self.reassignments)
            self.lowered["reassignments"] = len(self._steps)
        self._done = int(self.reassigned)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """New labels when it is time (§3.1, step 2), and the loss of one global batch (step 1)."""
        if self._done < len(self._steps) and self.global_step >= self._steps[self._done]:
            self._reassign()
        key, parts = batch.key.fold("view"), dict[str, Tensor]()
        views = self.view(batch.images, key) if self.rotation is None else turned_views(batch.images, self.view, key)
        features = self.encoder(views)
        logits = self.head(self.hidden(features[: len(batch)]))
        loss = self_label_loss(logits, self.labels[:, batch.indices], self.clusters)
        if self.rotation is not None:
            parts = {"self_label_loss": loss, "rotation_loss": turning_loss(full_precision(self.rotation(features)))}
            loss = loss + self.rotation_weight * parts["rotation_loss"]
        self.log_training(logits, loss=loss, **parts)
        return loss

    def write_outputs(self, folder: Path) -> None:
        """`self_labels.npy`: int64 [H, n], for the `labels_file` of another network."""
        with atomic_path(folder / "self_labels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, self.labels.cpu().numpy())

    def add_figures(self, report: FeatureReport, data: ImageData) -> None:
        """Also those of the hidden layers, and how the heads' labels agree with the classes (Table A.1)."""
        super().add_figures(report, data)
        train, test = (self._hidden_outputs(part) for part in self.measured)
        if len(self.hidden):
            k, classes = (
                min(self.knn_k, int((train.labels >= 0).sum())),
                int(max(train.labels.max(), test.labels.max())) + 1,
            )
            accuracy = knn_accuracy(*train, *test, k=k, num_classes=classes)
            width = train.features.shape[1]
            report.add(
                "knn_fc_accuracy", accuracy, f"weighted kNN, k = {k}, on the {width} outputs of the hidden layers"
            )
        add_agreement(report, self._likeliest(test.features), test.labels)

    @torch.no_grad()
    def _hidden_outputs(self, features: Features) -> Features:
        """What the heads are applied to, of features that were measured."""
        hidden = self.hidden.to(features.features.device).eval()
        parts = torch.split(features.features.to(self.head.weight.dtype), ROWS)
        return Features(torch.cat([hidden(part) for part in parts]), features.labels)

    @torch.no_grad()
    def _likeliest(self, hidden: Tensor) -> Tensor:
        """The likeliest label of each head, int64 [H, n], of what the heads are applied to [n, d]."""
        head = self.head.to(hidden.device)
        logits = (torch.split(head(part), self.clusters, 1) for part in torch.split(hidden, ROWS))
        return torch.cat([torch.stack([own.argmax(1) for own in part]) for part in logits], dim=1)

    @torch.no_grad()
    def _reassign(self) -> None:
        """New labels of all images for every head; each process those of its share.

        The encoder runs in the trainer's precision, the heads in float32: logits of 8 bits, times λ, blur the labels.
        """
        features, classes = self._of_all_images(self._predict)
        with torch.autocast(features.device.type, enabled=False):
            for own, labels in zip(self.labels, self._labellings(features), strict=True):
                own.copy_(labels)
        self._done += 1
        self.reassigned += 1
        self._report(gather_uneven(classes))

    def _labellings(self, features: Tensor) -> Iterator[Tensor]:
        """Labels of all images, int64 [N], head by head: its predictions balanced (Eq. 6 to 8), or clusters.

        Args:
            features: [n, d], of this process's share.
        """
        heads = zip(*(torch.split(part, self.clusters) for part in self.head.parameters()), strict=True)
        for number, (own, (weight, bias)) in enumerate(zip(self.labels, heads, strict=True)):
            if self.labelling == "kmeans":
                seed = derive_seed(self._data.seed, "clusters", self._done, number)
                labels, _ = kmeans(
                    features.float(), len(bias), seed=seed, iterations=CLUSTER_ITERATIONS, distributed=True
                )
                yield renumbered(gather_uneven(labels), own, len(bias))
                continue
            scores = partial(_scores, weight.float(), bias.float())
            labels = balanced_labels(
                features, scores, len(bias), power=self.power, tolerance=self.tolerance, distributed=True
            )
            yield gather_uneven(labels)

    def _predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the heads are applied to [n, d] of one view of each image, and the data set's labels [n]."""
        view = self.view(batch.images, batch.key.fold("reassignment", self._done))
        return self.hidden(self.encoder(view)), batch.labels

    def _report(self, classes: Tensor) -> None:
        """Log how the self-labels agree with the true labels [n], if there are any: they are for this alone."""
        known = classes >= 0
        if not self.trainer.is_global_zero or not bool(known.any()):
            return
        agreement = {
            "self_label_nmi": [cluster_metrics(own, classes)["nmi"] for own in self.labels],
            "self_label_entropy": [label_entropy(own[known], classes[known]) for own in self.labels],
        }
        # `self.log` would repeat the values at later steps, but not after a resume.
        for logger in self.loggers:
            logger.log_metrics({name: float(np.mean(values)) for name, values in agreement.items()}, self.global_step)


def read_self_labels(path: str, clusters: Sequence[int], count: int, head: int | None = None) -> Tensor:
    """Labels written by an earlier run, int64 [H, count]; of one of its heads alone, [1, count].

    Raises:
        UslError: no such file, or not labels for these heads, clusters and images.
    """
    try:
        array = load_array(Path(path), where=f"model.labels_file: {path}")
    except FileNotFoundError as error:
        raise UslError(f"model.labels_file: {path} is not there; give the file that an earlier SeLa wrote") from error
    if array.dtype.kind not in "iuf":
        raise UslError(f"model.labels_file: {path} holds {array.dtype}; expected whole numbers")
    if head is not None and (array.ndim != 2 or head >= len(array)):
        raise UslError(
            f"model.labels_head: {head} of {path}, which holds {list(array.shape)}; expected one of its heads"
        )
    labels = torch.from_numpy(array if head is None else array[head : head + 1])
    expected = f"expected [{len(clusters)}, {count}] integers from 0 to below {', '.join(map(str, clusters))}"
    if labels.is_floating_point() or labels.shape != (len(clusters), count):
        raise UslError(f"model.labels_file: {path} holds {list(labels.shape)} {labels.dtype}; {expected}")
    if int(labels.min()) < 0 or bool((labels.amax(1) >= torch.tensor(clusters)).any()):
        raise UslError(f"model.labels_file: {path} holds {int(labels.min())} to {int(labels.max())}; {expected}")
    return labels.long()


def _clusters(heads: int, clusters: int | list[int]) -> list[int]:
    """K of each head."""
    each = [clusters] * heads if isinstance(clusters, int) else list(clusters)
    if len(each) != heads:
        raise UslError(f"model.clusters: {clusters} for model.heads {heads}; expected a number, or one for each head")
    return each


def _scores(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    return F.linear(features.float(), weight, bias)
