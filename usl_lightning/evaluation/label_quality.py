"""How good a set of chosen images is, once its labels are known. For reports only: nothing chooses by it."""

from typing import TypedDict

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import chunks
from usl_lightning.evaluation.knn import weighted_knn
from usl_lightning.vectors.distances import squared_distances, unit_rows
from usl_lightning.vectors.neighbors import knn


class LabelQuality(TypedDict):
    """What `label_quality` tells; None where it cannot be told.

    classes_covered: classes with at least one chosen image.
    class_counts: chosen images of each class.
    balance: entropy of class_counts over log(classes), 0 … 1; 1 when all are equal.
    mean_density: mean over the chosen of 1/(mean squared distance to the 20 nearest others).
    spread: mean distance from a chosen image to the nearest other chosen one.
    coverage_distance: mean distance from an image of the set to the nearest chosen one.
    propagated_accuracy: images not chosen that the label of the nearest chosen one fits, a fraction.
    """

    classes_covered: int
    class_counts: list[int]
    balance: float | None
    mean_density: float | None
    spread: float | None
    coverage_distance: float | None
    propagated_accuracy: float | None


def label_quality(
    labels: Tensor, selected: Tensor, features: Tensor | None = None, *, num_classes: int, k: int = 20
) -> LabelQuality:
    """Measure a choice of images against the labels of the whole set.

    Args:
        labels: int64 [n], 0 … num_classes - 1, or -1 where not known (not counted).
        selected: int64 [m], distinct indices of the chosen images.
        features: [n, d], L2-normalised here; without them the last four figures are None.
        num_classes: how many classes there are.
        k: neighbours in the density, at most n - 1.

    Raises:
        UslError: indices out of range or repeated, labels out of range, features of another length.
    """
    n = len(labels)
    _check(labels, selected, features, num_classes)
    chosen = labels[selected]
    counts = torch.bincount(chosen[chosen >= 0], minlength=num_classes).cpu()
    quality = LabelQuality(
        classes_covered=int((counts > 0).sum()),
        class_counts=counts.tolist(),
        balance=_balance(counts),
        mean_density=None,
        spread=None,
        coverage_distance=None,
        propagated_accuracy=None,
    )
    if features is not None:
        x = unit_rows(features)
        selected, labels = selected.to(x.device), labels.to(x.device)
        if n > 1:
            quality["mean_density"] = _mean_density(x, selected, min(k, n - 1))
        if len(selected) > 1:
            nearest = knn(x[selected], 1, include_self=False)[0]
            quality["spread"] = float(nearest.sqrt().double().mean())
        quality["coverage_distance"] = _coverage_distance(x, selected)
        quality["propagated_accuracy"] = _propagated_accuracy(x, labels, selected, num_classes)
    return quality


def _balance(counts: Tensor) -> float | None:
    if not counts.any() or len(counts) < 2:
        return None
    p = counts.double() / counts.sum()
    return float(torch.special.entr(p).sum() / torch.tensor(len(counts)).double().log())


def _mean_density(x: Tensor, selected: Tensor, k: int) -> float:
    # The nearest of the k + 1 is the point itself or a duplicate of it: at distance 0 either way.
    distances = knn(x, k + 1, queries=x[selected])[0][:, 1:].double()
    return float((1 / distances.mean(1).clamp(min=1e-12)).mean())


def _coverage_distance(x: Tensor, selected: Tensor) -> float:
    total = 0.0
    for rows in chunks(len(x), 24 * len(selected), x.device):
        total += float(squared_distances(x[rows], x[selected]).amin(1).sqrt().double().sum())
    return total / len(x)


def _propagated_accuracy(x: Tensor, labels: Tensor, selected: Tensor, num_classes: int) -> float | None:
    others = labels >= 0
    others[selected] = False
    if not others.any() or not (labels[selected] >= 0).any():
        return None
    nearest = weighted_knn(x[selected], labels[selected], x[others], k=1, num_classes=num_classes)
    return float((nearest == labels[others]).double().mean())


def _check(labels: Tensor, selected: Tensor, features: Tensor | None, num_classes: int) -> None:
    n = len(labels)
    if len(selected) == 0 or selected.min() < 0 or selected.max() >= n or len(set(selected.tolist())) < len(selected):
        raise UslError(f"selected: expected distinct indices from 0 to {n - 1}, at least one")
    if labels.max() >= num_classes or labels.min() < -1:
        raise UslError(f"labels: expected -1 (not known) or a class from 0 to {num_classes - 1}")
    if features is not None and len(features) != n:
        raise UslError(f"features: {len(features)} rows for {n} labels; expected as many")
