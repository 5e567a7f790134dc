"""Prior pseudo-labels: what a few labels say of all points, as compact votes instead of a matrix [n, classes]."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import derive_seed
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.propagation import ALPHAS, balanced, centred, propagate, propagation_graph
from usl_lightning.vectors.seeded_kmeans import check_clusters, seeded_kmeans

Spread = Literal["clusters", "graph", "nearest"]

MULTIPLES = (1, 2, 3, 4, 5, 6)
"""K of each run of k-means in classes: AS3L's 10, 20, …, 60 for ten (Wen et al., 2022, section 4.1.3)."""

SMALL = 10
"""Neighbours that a graph of few points has: 50 of them, as published for 50,000, reach into other classes."""

TOLERANCE, STEPS = 1e-6, 20
"""Where the conjugate gradients end (Iscen et al., CVPR 2019)."""


class Prior(NamedTuple):
    """Class shares of n points that sum up to 1 at most: weightᵢ · Σᵣ tables[r, clusters[i, r]].

    Attributes:
        clusters: int32 [n, R], the row of each of R tables that a point takes.
        tables: float32 [R, K, c].
        weights: float32 [n].
    """

    clusters: Tensor
    tables: Tensor
    weights: Tensor

    def rows(self, indices: Tensor) -> Tensor:
        """Class shares [m, c] of the points int64 [m]."""
        runs = torch.arange(len(self.tables), device=self.tables.device)
        return self.tables[runs, self.clusters[indices].long()].sum(1) * self.weights[indices, None]

    def check(self, where: str) -> None:
        """Refuse what is no prior.

        Raises:
            UslError: shares that are not finite, negative or add up to more than 1; it names the points.
        """
        points, runs = self.clusters.shape
        fits = self.tables.dim() == 3 and len(self.tables) == runs and self.weights.shape == (points,)
        if not fits or not bool(((self.clusters >= 0) & (self.clusters < self.tables.shape[1])).all()):
            raise UslError(f"{where}: clusters, tables and weights do not fit together; make the file again")
        if not bool(self.tables.isfinite().all()) or not bool(self.weights.isfinite().all()):
            raise UslError(f"{where}: holds numbers that are not finite; expected shares from 0 to 1")
        sums = self.tables.double().sum(2)[torch.arange(runs), self.clusters.long()].sum(1) * self.weights
        if bool((self.tables < 0).any()) or bool((self.weights < 0).any()):
            raise UslError(f"{where}: holds negative shares; expected none below 0")
        above = torch.nonzero(sums > 1 + 1e-4)[:, 0]
        if len(above):
            raise UslError(
                f"{where}: the shares of {len(above)} images add up to more than 1, image {int(above[0])} to "
                f"{float(sums[above[0]]):.4g}; expected at most 1"
            )


@dataclass(frozen=True)
class Recipe:
    """How a prior is made of features and labels.

    Args:
        spread: `clusters`: an image takes the label of its cluster, in several runs of constrained seed k-means (AS3L).
            `graph`: label propagation; the label of the largest share, weighted by how certain it is (Iscen et al.).
            `nearest`: the label of the nearest labelled image.
        clusters: K of each run of `clusters`; None: the number of classes times 1, 2, …, 6.
        scaled: of `clusters`: votes are averaged over the runs whose cluster has a label, so that they add up to 1
            where there is one; else over all runs, so that who is reached seldom is less sure.
        k: neighbours of `graph`, at most; of small sets a hundredth of the points, or `SMALL`.
        iterations: of each run of `clusters`, at most.
    """

    spread: Spread = "clusters"
    clusters: tuple[int, ...] | None = None
    scaled: bool = True
    k: int = 50
    iterations: int = 300

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "clusters": None if self.clusters is None else list(self.clusters)}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Recipe":
        """What `plain` gave."""
        return cls(**{**plain, "clusters": None if plain["clusters"] is None else tuple(plain["clusters"])})

    def runs(self, classes: int) -> tuple[int, ...]:
        """K of each run."""
        return tuple(classes * times for times in MULTIPLES) if self.clusters is None else self.clusters

    def neighbours(self, points: int) -> int:
        """The k of `graph` as it is used."""
        return min(self.k, max(SMALL, points // 100), max(1, points - 1))

    def check(self, labelled: int, classes: int, points: int) -> None:
        """Refuse a number of clusters that is not possible.

        Args:
            labelled: classes that have a label.
            classes: all of them.
            points: images.

        Raises:
            UslError: says what it can be.
        """
        for k in self.runs(classes) if self.spread == "clusters" else ():
            check_clusters(k, labelled, points)

    def prior(self, features: Tensor, rows: Tensor, labels: Tensor, classes: int, *, seed: int) -> Prior:
        """The prior of all points; that of a labelled one is its label.

        Args:
            features: [n, d]; only directions count.
            rows: int64 [m], the labelled points.
            labels: int64 [m].
            classes: c.
            seed: of k-means.

        Raises:
            UslError: features without a direction, or a number of clusters that is not possible.
        """
        x = unit_rows(features)
        rows, labels = rows.to(x.device), labels.to(x.device)
        if self.spread == "graph":
            return propagated_prior(x, rows, labels, classes, k=self.neighbours(len(x)))
        if self.spread == "nearest":
            return nearest_prior(x, rows, labels, classes)
        runs = self.runs(classes)
        return clustered_prior(
            x, rows, labels, classes, runs, scaled=self.scaled, iterations=self.iterations, seed=seed
        )


def clustered_prior(
    x: Tensor,
    rows: Tensor,
    labels: Tensor,
    classes: int,
    runs: Sequence[int],
    *,
    scaled: bool,
    iterations: int,
    seed: int,
) -> Prior:
    """Labels spread within the clusters of several runs of constrained seed k-means (AS3L, section 3.3).

    In each run a point has the class shares among the labelled members of its cluster, none if there are none; then the
    mean over the runs, see `Recipe`.

    Args:
        x: unit rows [n, d].
        rows, labels: int64 [m], the labelled points and their classes.
        classes: c.
        runs: K of each.
        scaled, iterations: see `Recipe`.
        seed: of the starts.
    """
    clusters, tables = [], torch.zeros(len(runs), max(runs), classes, device=x.device)
    for run, k in enumerate(runs):
        start = seed if run == 0 else derive_seed(seed, "prior", run)
        clusters.append(seeded_kmeans(x, k, rows, labels, seed=start, iterations=iterations)[0])
        tables[run].index_put_((clusters[-1][rows], labels), torch.ones(len(rows), device=x.device), accumulate=True)
    tables /= tables.sum(2, keepdim=True).clamp_min(1)
    ids = torch.stack(clusters, 1)
    weights = torch.full((len(x),), 1 / len(runs), device=x.device)
    if scaled:
        reached = tables.sum(2)[torch.arange(len(runs), device=x.device), ids].sum(1)
        weights = 1 / reached.clamp_min(1)
    return Prior(ids.int(), tables, weights)


def propagated_prior(x: Tensor, rows: Tensor, labels: Tensor, classes: int, *, k: int) -> Prior:
    """Label propagation as by Iscen et al. (CVPR 2019): the largest class, as sure as 1 − entropy / log c.

    The certainties are scaled by the largest of them. Not as there: directions are from the mean, and α is 0.9 and not
    0.99, with which a label goes so far that the nearest one is more often right, on published features above all.

    Args:
        x: unit rows [n, d].
        rows, labels: int64 [m], the labelled points and their classes.
        classes: c, at least 2.
        k: neighbours of each point.
    """
    everything = torch.ones(1, len(rows), dtype=torch.bool, device=x.device)
    sources = torch.zeros(len(x), classes, device=x.device)
    sources[rows] = balanced(labels, everything, classes)[0]
    graph = propagation_graph(centred(x, x.mean(0)), k)
    shares = propagate(graph, sources, ALPHAS[0], tolerance=TOLERANCE, steps=STEPS).clamp_min(0)
    total = shares.sum(1, keepdim=True)
    shares = shares / torch.where(total > 0, total, 1)
    entropy = torch.special.entr(shares).sum(1) / torch.log(torch.tensor(float(classes)))
    certainty = torch.where(total[:, 0] > 0, 1 - entropy, 0).clamp(0, 1)
    certainty = certainty / certainty.max().clamp_min(torch.finfo(certainty.dtype).tiny)
    winners = shares.argmax(1)
    winners[rows], certainty[rows] = labels, 1.0
    return Prior(winners[:, None].int(), torch.eye(classes, device=x.device)[None], certainty)


def nearest_prior(x: Tensor, rows: Tensor, labels: Tensor, classes: int) -> Prior:
    """The label of the nearest labelled point; of several at one distance the first.

    Args:
        x: unit rows [n, d].
        rows, labels: int64 [m], the labelled points and their classes.
        classes: c.
    """
    nearest = torch.cat([(x[part] @ x[rows].T).argmax(1) for part in chunks(len(x), 4 * len(rows), x.device)])
    nearest[rows] = torch.arange(len(rows), device=x.device)
    table = F.one_hot(labels, classes).to(torch.float32)[None]
    return Prior(nearest[:, None].int(), table, torch.ones(len(x), device=x.device))
