"""What a classifier of few labels makes of a choice: its accuracy on the images that were not chosen."""

from importlib import import_module

import torch
from torch import Tensor

from usl_lightning.compare.spec import CLASSIFIERS
from usl_lightning.data.batch import ImageSpec


def classified_accuracy(
    name: str, features: Tensor, labels: Tensor, chosen: list[int], image: ImageSpec, seed: int
) -> float | None:
    """The share of the images beside the chosen ones whose class is told, 0 … 1.

    Args:
        name: one of `CLASSIFIERS`.
        features: [n, d], of all images.
        labels: int64 [n], -1 where not known.
        chosen: positions of images; those of them that have a label are learned from.
        image: has the classes.
        seed: of the folds in which settings are chosen.

    Returns:
        None if the labels are of fewer than two classes, or no other image has one.
    """
    module, _, kind = CLASSIFIERS[name].rpartition(".")
    rest = labels >= 0
    rows = torch.tensor(chosen)
    rows = rows[rest[rows]]
    rest[rows] = False
    if len(torch.unique(labels[rows])) < 2 or not bool(rest.any()):
        return None
    model = getattr(import_module(module), kind)(image=image, features="those of the comparison")
    logits = model.learn_from(features, rows, labels[rows], seed=seed).cpu()
    return float((logits[rest].argmax(1) == labels[rest]).double().mean())
