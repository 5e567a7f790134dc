"""Features drawn together around several clusterings (AS3L, Wen, Pizarro and Williams, 2022, section 3.2.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.progress import counted
from usl_lightning.compute.device import chunks
from usl_lightning.data.keys import derive_seed, permutation
from usl_lightning.vectors.distances import exact_arithmetic
from usl_lightning.vectors.kmeans import kmeans

BATCH = 256
LEARNING_RATE = 1e-3


def tightened(x: Tensor, k: int, *, seed: int, clusterings: int, epochs: int, iterations: int) -> Tensor:
    """Points drawn to their centres in several k-means runs from different starts, [n, d].

    Args:
        x: unit rows [n, d].
        k: clusters of each run.
        seed: decides the starting points of k-means and the order of training.
        clusterings: C, how many runs.
        epochs: passes of the fine-tuning; 0 leaves the points as they are.
        iterations: of each run, at most.

    Memory beyond the input: twice that (the mean centres, and k-means' copy or the tuned points).
    """
    centres = torch.zeros_like(x)
    for c in range(clusterings):
        labels, centroids = kmeans(x, k, seed=run_seed(seed, "before", c), iterations=iterations)
        for rows in chunks(len(x), x.nbytes // len(x), x.device):
            centres[rows] += centroids[labels[rows]] / clusterings
    return finetuned_features(x, centres, epochs=epochs, seed=seed)


def finetuned_features(features: Tensor, centres: Tensor, *, epochs: int = 40, seed: int = 0) -> Tensor:
    """The output of a linear layer trained by the mean squared error to the centres (eq. 1).

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


def run_seed(seed: int, when: str, run: int) -> int:
    """The first run's starts are those of the other selectors' k-means, which makes them easier to compare."""
    return seed if run == 0 else derive_seed(seed, "as3l", when, run)
