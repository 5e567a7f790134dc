"""CoreGCN and UncertainGCN: a graph network tells labelled from unlabelled images (Caramalau et al., CVPR 2021)."""

import logging
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.base.progress import counted
from usl_lightning.base.ranges import Ranges, above, whole, within
from usl_lightning.data.keys import Key, permutation
from usl_lightning.selection.next_selector import Known, NextOptions, NextSelector
from usl_lightning.vectors.coverage import farthest_first

log = logging.getLogger(__name__)

HIDDEN = 128
DROPOUT = 0.3
RATE, DECAY = 1e-3, 5e-4


class Graph(NamedTuple):
    """What the network has learned.

    Attributes:
        hidden: [n, 128], of each point.
        labelled: [n], 0 to 1: how much a point looks labelled.
    """

    hidden: Tensor
    labelled: Tensor


def adjacency(x: Tensor) -> Tensor:
    """Cosines of unit rows [n, d] without those of points with themselves, columns of sum 1, and 1 on the diagonal.

    The paper's features come from a ReLU. Of others negative cosines are none here, or sums would vanish.
    """
    a = (x @ x.T).clamp_min_(0).fill_diagonal_(0)
    total = a.sum(0)
    return (a / torch.where(total > 0, total, 1.0)).fill_diagonal_(1)


def graph_loss(scores: Tensor, labelled: Tensor, *, weight: float) -> Tensor:
    """-mean log s of the labelled - weight · mean log(1 - s) of the others (eq. 6).

    Args:
        scores: logits of s, [n].
        labelled: bool [n], some of each.
        weight: of the unlabelled.
    """
    return -F.logsigmoid(scores[labelled]).mean() - weight * F.logsigmoid(-scores[~labelled]).mean()


def train_graph(x: Tensor, labelled: Tensor, *, weight: float, steps: int, seed: int) -> Graph:
    """Train the network, two layers of graph convolution with dropout between, by Adam.

    Args:
        x: unit rows [n, d].
        labelled: bool [n], some of each.
        weight: see `graph_loss`.
        steps: of Adam.
        seed: of weights and dropout.
    """
    a, d = adjacency(x), x.shape[1]
    seen = a @ x
    key = Key.of(seed, "CoreGCN", slots=torch.arange(max(d, HIDDEN)))
    first, last = (6 / (d + HIDDEN)) ** 0.5, (6 / (HIDDEN + 1)) ** 0.5  # Glorot
    weights = [
        key.fold(1)[:d].uniform(HIDDEN, -first, first).to(x),
        torch.zeros(HIDDEN).to(x),
        key.fold(2)[:HIDDEN].uniform(1, -last, last).to(x),
        torch.zeros(1).to(x),
    ]
    for each in weights:
        each.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=RATE, weight_decay=DECAY)
    slots = torch.arange(len(x), device=x.device)
    with torch.enable_grad():
        for step in counted(steps, "CoreGCN", "step"):
            stays = Key.of(seed, "CoreGCN", "dropout", step, slots=slots).uniform(HIDDEN) >= DROPOUT
            hidden = (seen @ weights[0] + weights[1]).relu() * stays / (1 - DROPOUT)
            loss = graph_loss((a @ (hidden @ weights[2]) + weights[3])[:, 0], labelled, weight=weight)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        hidden = (seen @ weights[0] + weights[1]).relu()
        return Graph(hidden, (a @ (hidden @ weights[2]) + weights[3])[:, 0].sigmoid())


class CoreGCN(NextSelector):
    """Of images that a graph network is to tell from the labelled: its farthest, or those it is not sure of.

    `core` takes by k-centre on the network's hidden layer, from the labelled on; `uncertain`, UncertainGCN, the images
    whose score is nearest to a margin. The papers' features are a network's; the classifier is not looked at otherwise.

    Args:
        rule: which of the two.
        pool: images without a label that are looked at, at random, and at least as many as are to be picked.
        weight: of the unlabelled in the loss.
        margin: of `uncertain`.
        steps: of training.
        options: the budget, what is kept, the classifier and the features: see `NextSelector`.
    """

    ranges: ClassVar[Ranges] = {"pool": whole(1), "weight": above(0), "margin": within(0, 1), "steps": whole(0)}

    def __init__(
        self,
        rule: Literal["core", "uncertain"] = "core",
        pool: int = 10_000,
        weight: float = 1.2,
        margin: float = 0.1,
        steps: int = 200,
        **options: Unpack[NextOptions],
    ) -> None:
        super().__init__(**options)
        self.rule, self.pool, self.weight, self.margin, self.steps = rule, pool, weight, margin, steps
        self._looked_at = pool

    def settled(self, n: int) -> dict[str, Any]:
        """The images that are looked at, of which there are no fewer than are to be picked."""
        return {"pool": self._looked_at}

    def pick(self, known: Known, count: int, seed: int) -> Tensor:
        """See the class."""
        order = permutation(len(known.open), seed, "CoreGCN").to(known.open.device)
        self._looked_at = max(self.pool, count)
        if self._looked_at > self.pool:
            log.info("CoreGCN: a pool of %d instead of %d, as so many are to be picked", count, self.pool)
        some = known.open[order[: self._looked_at].sort().values]
        both = torch.cat([known.kept, some])
        labelled = torch.arange(len(both), device=both.device) < len(known.kept)
        x = known.features[both]
        graph = train_graph(x, labelled, weight=self.weight, steps=self.steps, seed=seed)
        if self.rule == "core":
            first = torch.arange(len(known.kept), device=both.device)
            return both[farthest_first(graph.hidden, first, count, "CoreGCN")]
        distance = (graph.labelled - self.margin).abs().masked_fill(labelled, torch.inf)
        return both[torch.argsort(distance, stable=True)[:count]]
