"""AS3L's selection: features tightened around several clusterings, then the middle of what stays together."""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.progress import counted
from usl_lightning.base.ranges import Ranges, whole
from usl_lightning.compute.device import chunks
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.keys import derive_seed, permutation
from usl_lightning.selection.selector import Selector
from usl_lightning.vectors.density import best_of_each, fill_to_budget
from usl_lightning.vectors.distances import check_budget, exact_arithmetic, unit_rows
from usl_lightning.vectors.kmeans import kmeans

BATCH = 256
LEARNING_RATE = 1e-3

Largest = Literal["of_all", "of_each"]


def select_as3l(
    features: Tensor,
    budget: int,
    *,
    seed: int = 0,
    clusterings: int = 6,
    epochs: int = 40,
    iterations: int = 200,
    largest: Largest = "of_all",
) -> Tensor:
    """Select as AS3L does (Wen, Pizarro, Williams, "Active self-semi-supervised learning", section 3.2).

    1. C k-means runs, each into `budget` clusters, from different starts.
    2. `finetuned_features`: a linear layer that draws every point to its C centres (eq. 1).
    3. C k-means runs on those. Points that share a cluster in all C runs are a group; of each of the `budget` largest
       groups the member nearest to its median (taken in each dimension).

    The paper's text leaves open which groups are used if they are more than the budget. With the largest in each
    cluster of the first run, that run is privileged: the others cannot give back a class that it missed.

    Args:
        features: [n, d], any float dtype, CPU or CUDA; L2-normalised here.
        budget: how many, from 1 to n; also K, the clusters of every run.
        seed: decides the starting points of k-means and the order of training.
        clusterings: C, at least 1.
        epochs: passes of the fine-tuning; 0 leaves the features as they are.
        iterations: of each k-means run, at most.
        largest: which groups of points that share a cluster in every run have their median picked: the largest of all,
            the plainer reading of "share a class in all C runs"; or the largest in each cluster of the first run.

    Returns:
        int64 [budget], distinct, the largest group's first, or in the order of the first run's clusters; if there are
        too few groups, the remaining points of these, nearest to the median first, then the others. Ties to the lower
        index.

    Raises:
        UslError: a parameter out of range, features not finite or with rows of zeros.

    Memory beyond the input: three times the features in float32 (unit rows, their mean centres, and k-means' copy
    or the tuned features), however many clusterings; and C labels a point.
    """
    check_budget(budget, len(features))
    if clusterings < 1 or epochs < 0:
        raise UslError(f"clusterings={clusterings}, epochs={epochs}: expected at least 1 and 0")
    x = unit_rows(features)
    centres = torch.zeros_like(x)
    for c in range(clusterings):
        labels, centroids = kmeans(x, budget, seed=_seed(seed, "before", c), iterations=iterations)
        for rows in chunks(len(x), x.nbytes // len(x), x.device):
            centres[rows] += centroids[labels[rows]] / clusterings
    tuned = finetuned_features(x, centres, epochs=epochs, seed=seed)
    del x, centres
    after = [kmeans(tuned, budget, seed=_seed(seed, "after", c), iterations=iterations)[0] for c in range(clusterings)]
    return _medians(tuned, torch.stack(after, 1), budget, largest)


def finetuned_features(features: Tensor, centres: Tensor, *, epochs: int = 40, seed: int = 0) -> Tensor:
    """The output of a linear layer trained by the mean squared error to the centres (section 3.2.1).

    The error to C centres is that to their mean, but for a constant. The layer has the features' dimension and
    starts as the identity, as it is to keep their structure; Adam, learning rate 1e-3, batches of 256: these the
    paper leaves open.

    Args:
        features: [n, d].
        centres: [n, d], for each point the mean of its centres.
        epochs: passes over the set.
        seed: decides the order of each pass.

    Returns:
        [n, d].
    """
    n, d = features.shape
    layer = nn.Linear(d, d).to(features)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(d))
        layer.bias.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    with exact_arithmetic(features.device), torch.enable_grad():
        for epoch in counted(epochs, "AS3L: fine-tuning", "epoch"):
            for rows in permutation(n, seed, "fine-tuning", epoch).to(features.device).split(BATCH):  # type: ignore[no-untyped-call]
                loss = F.mse_loss(layer(features[rows]), centres[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return layer(features).detach()  # type: ignore[no-any-return]


def _seed(seed: int, when: str, run: int) -> int:
    """The first run's starts are those of the other selectors' k-means, which makes them easier to compare."""
    return seed if run == 0 else derive_seed(seed, "as3l", when, run)


def _largest_groups(groups: Tensor, sizes: Tensor, budget: int, largest: Largest) -> Tensor:
    """Places of the groups [g, C] that have a pick, by their sizes [g]."""
    if largest == "of_all":
        return torch.argsort(sizes, descending=True, stable=True)[:budget]
    clusters, cluster = torch.unique(groups[:, 0], return_inverse=True)
    return best_of_each(sizes.double(), cluster, len(clusters))


def _medians(x: Tensor, labels: Tensor, budget: int, largest: Largest) -> Tensor:
    """The middles of the largest groups of equal rows of labels [n, C]."""
    groups, group, sizes = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
    scores = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    picks = []
    for each in _largest_groups(groups, sizes, budget, largest):
        members = torch.nonzero(group == each)[:, 0]
        points = x[members].double()
        scores[members] = -(points - points.median(0).values).square().sum(1)
        picks.append(members[scores[members].argmax()])
    return fill_to_budget(torch.stack(picks), scores, budget)


class AS3L(Selector):
    """AS3L's selection as one stage: the features of the images, then `select_as3l`.

    Args:
        image: of the images; the command line takes it from the data.
        budget: number of images to pick, with those that are kept.
        init_from: checkpoint whose encoder gives the features.
        clusterings: C, k-means runs before and after the fine-tuning.
        epochs: of the fine-tuning.
        iterations: of k-means, at most.
        largest: which groups have their median picked, see `select_as3l`.
        source: where else the features come from, and what to keep: see `Selector`.
    """

    revision: int = 2

    ranges: ClassVar[Ranges] = {"clusterings": whole(1), "epochs": whole(0), "iterations": whole(1)}

    # `**source` is resolved by the command line to the parameters of `Selector`, each typed and documented.
    def __init__(
        self,
        image: ImageSpec,
        budget: int,
        init_from: str | None = None,
        clusterings: int = 6,
        epochs: int = 40,
        iterations: int = 200,
        largest: Largest = "of_all",
        **source: Any,
    ) -> None:
        super().__init__(image=image, budget=budget, init_from=init_from, **source)
        self._select = partial(
            select_as3l, clusterings=clusterings, epochs=epochs, iterations=iterations, largest=largest
        )

    def choose(self, features: Tensor, seed: int) -> Tensor:
        """See `select_as3l`."""
        return self._select(features, self.budget, seed=seed)
