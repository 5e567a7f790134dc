"""What the features of a stage-1 network are worth: everything that `usl test` reports of them."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.data.keys import permutation
from usl_lightning.evaluation.clusters import cluster_metrics
from usl_lightning.evaluation.knn import TEMPERATURE, knn_accuracy, neighbour_purity
from usl_lightning.evaluation.linear_probe import balanced_subset, probe_accuracies, probe_accuracy
from usl_lightning.evaluation.spread import feature_std, rankme, uniformity
from usl_lightning.vectors.kmeans import kmeans
from usl_lightning.vectors.whitening import principal_axes

FEW = 1000
"""Labels of the last linear probe."""

PENALTY = 1e-2
"""Weight of the L-BFGS probes' penalty, the same for all features, so that no figure owes anything to a search on test
images."""

NEIGHBOURS = (1, 20)
"""Neighbours of the kNN classifiers beside the one whose k is given."""

PURE = 10
"""Neighbours whose classes are compared with that of an image."""

COMPONENTS = 128
"""Principal components that a kNN classifier looks at beside all features, as papers of stage 1 do (SeLa, Table 7)."""

MANY = 20
"""From so many classes on, it is also told how often the right one is among the five likeliest, as on ImageNet."""

_PAIRED = 4096  # features whose pairs uniformity looks at, and whose rank is told


class Features(NamedTuple):
    """Features [n, d] of the images of a split, and their labels, int64 [n], -1 where unknown."""

    features: Tensor
    labels: Tensor


@dataclass
class FeatureReport:
    """Figures, and how each was come by.

    Attributes:
        metrics: name -> value; accuracies, `nmi` and `ari` are fractions of 1.
        notes: the same names -> what was measured, with k and the number of labels.
        left_out: what could not be measured, and why; a line each.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, value: float | Tensor, note: str) -> None:
        """One more figure."""
        self.metrics[name], self.notes[name] = float(value), note

    def table(self) -> str:
        """Aligned lines: name, value, note; then what was left out."""
        width = max(map(len, self.metrics))
        rows = [f"{name:{width}}  {value:9.4f}  {self.notes[name]}" for name, value in self.metrics.items()]
        return "\n".join(rows + [f"left out: {line}" for line in self.left_out])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)


def evaluate_features(
    train: Features, test: Features | None = None, *, knn_k: int = 200, seed: int = 0
) -> FeatureReport:
    """Measure features; labels are read for this report alone.

    Args:
        train: of the training images: the bank of the kNN classifier, what the probes fit on, what k-means clusters.
        test: of the test images, on the same device; None: there are none.
        knn_k: neighbours; all labelled training images if there are fewer.
        seed: of k-means' starting points, of SGD's order, and of the labels that the last probe sees.

    Returns:
        `feature_std`, `uniformity` and `rankme`; where labels allow it `nmi`, `ari`, `neighbour_purity`,
        `knn_accuracy`, that of 1 and of 20 neighbours, of more than 128 features `knn_pca_accuracy`, `probe_accuracy`
        (of many classes `probe_top5_accuracy` too), `probe_sgd_accuracy` and `probe_1000_accuracy`.
    """
    report = FeatureReport()
    n, d = train.features.shape
    std = float(feature_std(train.features))
    report.add("feature_std", std, f"{std * d**0.5:.2f} of 1/√d, d = {d}: 0 is collapsed, 1 is evenly spread")
    some = permutation(n, seed, "uniformity")[:_PAIRED].to(train.features.device)
    if n > 1:
        report.add(
            "uniformity", uniformity(train.features[some]), f"pairs of {len(some)} training images; 0 to about -4"
        )
    report.add("rankme", rankme(train.features[some]), f"directions in use of {min(len(some), d)}, {len(some)} images")
    if not (train.labels >= 0).any():
        report.left_out.append("k-means, kNN and linear probe: no training image has a label")
        return report
    _add_clusters(report, train, seed)
    if int((train.labels >= 0).sum()) > 1:
        k = min(PURE, int((train.labels >= 0).sum()) - 1)
        purity = neighbour_purity(*train, some, k=k)
        note = f"of the {k} most similar images of one, those of its class; {len(some)} training images"
        report.add("neighbour_purity", purity, note)
    if test is None:
        report.left_out.append("kNN and linear probe: the data set has no test images")
    elif not (test.labels >= 0).any():
        report.left_out.append("kNN and linear probe: no test image has a label")
    else:
        _add_classifiers(report, train, test, knn_k, seed)
    return report


def first_filters(encoder: nn.Module) -> Tensor | None:
    """The filters of a network's first convolution as images, uint8 [n, c, h, w]; grey is 0, black or white the most.

    None if the first convolution is not of images of 1 or 3 channels, or its filters have no width.
    """
    first = next((part for part in encoder.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.weight.shape[1] not in (1, 3) or min(first.kernel_size) < 2:
        return None
    weight = first.weight.detach().float().cpu()
    most = weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return ((weight / most + 1) * 127.5).round().to(torch.uint8)


def _add_clusters(report: FeatureReport, train: Features, seed: int) -> None:
    clusters = min(int(train.labels.max()) + 1, len(train.labels))
    found, _ = kmeans(F.normalize(train.features.float(), dim=1), clusters, seed=seed)
    metrics = cluster_metrics(found, train.labels)
    note = f"k-means, {clusters} clusters of {len(found)} training images"
    for name in ("nmi", "ari"):
        report.add(name, metrics[name], note)


def _add_classifiers(report: FeatureReport, train: Features, test: Features, knn_k: int, seed: int) -> None:
    classes = int(torch.maximum(train.labels.max(), test.labels.max())) + 1
    known = int((train.labels >= 0).sum())
    k = min(knn_k, known)
    accuracy = knn_accuracy(*train, *test, k=k, num_classes=classes)
    report.add("knn_accuracy", accuracy, f"weighted kNN, k = {k} of {known} images, temperature {TEMPERATURE:g}")
    for few in NEIGHBOURS:
        accuracy = knn_accuracy(*train, *test, k=min(few, known), num_classes=classes)
        report.add(f"knn_{few}_accuracy", accuracy, f"the same, k = {min(few, known)}")
    if train.features.shape[1] > COMPONENTS:
        accuracy = knn_accuracy(*_components(train, test), k=k, num_classes=classes)
        report.add("knn_pca_accuracy", accuracy, f"the same, k = {k}, on {COMPONENTS} principal components")
    tops = (1, 5) if classes >= MANY else (1,)
    accuracies = probe_accuracies(*train, *test, num_classes=classes, penalty=PENALTY, tops=tops)
    report.add("probe_accuracy", accuracies[0], f"linear probe, {known} labels")
    for accuracy in accuracies[1:]:
        report.add("probe_top5_accuracy", accuracy, "the same, among the 5 likeliest classes")
    accuracy = probe_accuracy(*train, *test, num_classes=classes, sgd_seed=seed)
    report.add("probe_sgd_accuracy", accuracy, f"the same by SGD, 100 epochs, {known} labels")
    if known <= FEW:
        report.left_out.append(f"linear probe on {FEW} labels: there are {known}, all in use above")
        return
    some = balanced_subset(train.labels, FEW, seed=seed).to(train.labels.device)
    accuracy = probe_accuracy(train.features[some], train.labels[some], *test, num_classes=classes, penalty=PENALTY)
    report.add(f"probe_{FEW}_accuracy", accuracy, f"linear probe, {FEW} labels")


def _components(train: Features, test: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both by the largest principal components of the training images' features."""
    mean, _, axes = (each.to(train.features.dtype) for each in principal_axes(train.features, COMPONENTS))
    return (train.features - mean) @ axes, train.labels, (test.features - mean) @ axes, test.labels
