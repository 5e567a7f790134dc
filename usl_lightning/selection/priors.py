"""Prior pseudo-labels of all images, from features that are learned already and a few labels (AS3L, section 3.3)."""

import logging
from pathlib import Path
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.data.modules import LabelledData
from usl_lightning.evaluation.priors import prior_figures
from usl_lightning.features.prior_files import write_prior
from usl_lightning.features.source import HeadedMethod, HeadedOptions
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.priors import Prior, Recipe, Spread
from usl_lightning.vectors.tightened import tightened

log = logging.getLogger(__name__)

CLUSTERINGS, ITERATIONS = 6, 200
"""Of the linear layer's k-means, as AS3L's selection has them."""


class Priors(HeadedMethod):
    """What the labels say of every image, to guide a method of stage 3 by.

    Args:
        spread: how labels spread. `clusters`: within the clusters of several runs of k-means in which the labelled
            images of a class stay together (AS3L). `graph`: label propagation, the largest class as sure as it is
            certain (Iscen et al., 2019). `nearest`: from the nearest labelled image.
        clusters: K of each of those runs; null: the number of classes times 1, 2, …, 6.
        scaled: their votes are averaged over the runs that say something of an image, so that they add up to 1; false:
            over all runs, so that who is reached seldom is less sure.
        k: neighbours of an image in the graph, at most; on small sets a hundredth of the images, or 10.
        iterations: of a run of k-means, at most.
        epochs: of AS3L's linear layer that draws the features together first, as its selection does with as many
            clusters as there are labels; published: 40. 0: the features as they are.
        options: where the features come from, and of which of a network's outputs: see `HeadedMethod`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {"clusters": whole(1), "k": whole(1), "iterations": whole(1), "epochs": whole(0)}

    verbs = ("propagate",)
    by_steps = False

    def __init__(
        self,
        spread: Spread = "clusters",
        clusters: list[int] | None = None,
        scaled: bool = True,
        k: int = 50,
        iterations: int = 300,
        epochs: int = 40,
        **options: Unpack[HeadedOptions],
    ) -> None:
        super().__init__(**options)
        if self.image.num_classes < 2:
            raise UslError(f"data.labels: {self.image.num_classes} classes are known; a prior needs at least 2")
        if clusters is not None and not clusters:
            raise UslError("model.clusters: no number is given; expected at least one, or null")
        self.recipe = Recipe(spread, None if clusters is None else tuple(clusters), scaled, k, iterations)
        self.epochs = epochs

    def spread(self, features: Tensor, data: LabelledData) -> tuple[Prior, dict[str, float]]:
        """The prior of all images, and how good it is: see `prior_figures`.

        Args:
            features: [n, d], of all images.
            data: has the labels.

        Raises:
            UslError: fewer clusters than classes with a label, or more than images; features without a direction.
        """
        rows, labels = (torch.tensor(column) for column in data.index.for_training())
        self.recipe.check(len(set(labels.tolist())), self.image.num_classes, len(features))
        if self.epochs:
            x, k = unit_rows(features), len(rows)
            features = tightened(
                x, k, seed=data.seed, clusterings=CLUSTERINGS, epochs=self.epochs, iterations=ITERATIONS
            )
        prior = self.recipe.prior(features, rows, labels, self.image.num_classes, seed=data.seed)
        figures = prior_figures(prior, rows, data.train_source.labels)
        if self.recipe.spread == "graph":
            figures["k"] = k = self.recipe.neighbours(len(features))
            if k != self.recipe.k:
                log.info("graph: k = %d instead of %d, for %d images", k, self.recipe.k, len(features))
        return prior, figures

    def write(self, path: Path, prior: Prior, data: LabelledData) -> None:
        """Write a prior for `model.prior_file` of a method of stage 3."""
        write_prior(path, prior, self.recipe, data)
