"""PAWS: Non-Parametrically Predicting View Assignments with Support Samples (Assran et al., ICCV 2021)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole, within
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.data.views.crops import multi_crop
from usl_lightning.models.heads import prediction_mlp, projection_mlp
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule

LARGE = 2
"""Views whose predictions are targets."""

SMALLEST = 1e-4
"""Entries of a target below this are set to 0, as published."""


def smoothed_labels(labels: Tensor, classes: int, *, smoothing: float) -> Tensor:
    """Distributions [m, classes]: a share `smoothing` spread evenly over all classes, the rest on the label.

    Args:
        labels: int64 [m].
        classes: how many there are.
        smoothing: in [0, 1].
    """
    return (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes


def soft_neighbours(queries: Tensor, supports: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """The soft nearest-neighbour classifier: a mean of the supports' labels, weighted by their likeness (§3).

    Args:
        queries: [n, d].
        supports: [m, d].
        labels: [m, c], each row a distribution.
        temperature: τ of the softmax over cosines, above 0.

    Returns:
        log-probabilities [n, c].
    """
    cosines = F.normalize(queries, dim=1) @ F.normalize(supports, dim=1).T
    probs = (cosines / temperature).softmax(1) @ labels.to(cosines.dtype)
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


@torch.no_grad()
def swapped_targets(log_probs: Tensor, views: int, *, temperature: float) -> Tensor:
    """What each view is to be predicted as: the sharpened prediction of the other large one; small ones, of both.

    Args:
        log_probs: of the two large views, [2n, c], view by view.
        views: large and small ones of each image, at least 2.
        temperature: T of the sharpening, above 0.

    Returns:
        [views·n, c]; each row a distribution, but for entries below 1e-4, which are 0.
    """
    first, second = (log_probs / temperature).softmax(1).chunk(LARGE)
    targets = torch.cat([second, first, *[(first + second) / 2] * (views - LARGE)])
    return torch.where(targets < SMALLEST, 0, targets)


def mean_entropy(log_probs: Tensor, *, temperature: float) -> Tensor:
    """The entropy of the mean of the sharpened predictions ("me-max"), from 0 to log c.

    Args:
        log_probs: [n, c], of the global batch.
        temperature: T of the sharpening, above 0.
    """
    mean = (log_probs / temperature).softmax(1).mean(0)
    return torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()  # entr'(0) is infinite


class PAWS(SemiSupervisedModule):
    """Two views of an image are to be assigned to the same classes, by how much they are like labelled images.

    The labelled images of a step, equally many of each class (`data.labelled_per_class`), are the supports of a
    classifier without weights. Its mean prediction is to have a high entropy, which keeps all from being one class.

    That trains an encoder, which the paper then fine-tunes: here `FineTune` with `init_from`. What is evaluated is a
    layer on its features that learns, without a gradient to them, the supports' labels and what they say of the rest.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        view: draws the large views of an image, and those of the supports.
        optimizer: how the weights are updated.
        small_view: draws the small views, of a size below that of `view`.
        small_views: how many of each image; 6 in the paper.
        support_views: views of each support; published: 2 on CIFAR-10, 1 on ImageNet.
        temperature: τ of the likeness to the supports.
        sharpening: T of the targets.
        smoothing: of the supports' labels.
        entropy_weight: of the entropy of the mean prediction ("me-max").
        hidden_dim, projection_dim: sizes of the 3-layer projection MLP, whose output has no batch norm.
        prediction_head: the predictions, not the targets, come from a bottleneck of a quarter on top of it.
        network: the network, its start, its moving average, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "small_views": whole(0),
        "support_views": whole(1),
        "temperature": above(0),
        "sharpening": above(0),
        "smoothing": within(0, 1),
        "entropy_weight": at_least(0),
        "hidden_dim": whole(1),
        "projection_dim": whole(4),
    }

    def __init__(
        self,
        image: ImageSpec,
        view: nn.Module,
        optimizer: Optimization,
        small_view: nn.Module | None = None,
        small_views: int = 0,
        support_views: int = 1,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        smoothing: float = 0.1,
        entropy_weight: float = 1.0,
        hidden_dim: int = 128,
        projection_dim: int = 128,
        prediction_head: bool = False,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.view, self.small_view, self.small_views = view, view if small_view is None else small_view, small_views
        self.support_views, self.smoothing, self.entropy_weight = support_views, smoothing, entropy_weight
        self.temperature, self.sharpening = temperature, sharpening
        features = self.model.encoder.feature_dim
        self.projector = projection_mlp(features, hidden_dim, projection_dim, layers=3, output_norm=False)
        self.predictor = prediction_mlp(projection_dim, projection_dim // 4) if prediction_head else nn.Identity()

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (§3)."""
        labelled, unlabelled = batch
        views = [self.view(labelled.images, labelled.key.fold("view", n)) for n in range(self.support_views)]
        crops = multi_crop(unlabelled.images, unlabelled.key, [self.view] * LARGE, self.small_view, self.small_views)
        large, *small = [self.model.encoder(size) for size in (torch.cat([*views, crops[0]]), *crops[1:])]
        z = full_precision(self.projector(torch.cat([large, *small])))
        anchors, logits = full_precision(self.predictor(z)), full_precision(self.model.head(large.detach()))
        labels = smoothed_labels(labelled.labels, self.image.num_classes, smoothing=self.smoothing)
        labels = labels.repeat(self.support_views, 1)
        with torch.autocast(z.device.type, enabled=False):
            predictions = self._predictions(anchors, labels)
            with torch.no_grad():
                seen = self.guided(self._predictions(z[: len(large)], labels), unlabelled.indices.repeat(LARGE))
                targets = swapped_targets(seen, LARGE + self.small_views, temperature=self.sharpening)
            assignment = -(targets * predictions).sum(1).mean()
            entropy = mean_entropy(gather(predictions), temperature=self.sharpening)
        said = targets[: LARGE * len(unlabelled)].view(LARGE, len(unlabelled), -1).mean(0)
        classifier = F.cross_entropy(logits, torch.cat([labels, *[said] * LARGE]))
        loss = assignment - self.entropy_weight * entropy + classifier
        self.log_guesses(said, torch.ones_like(said[:, 0]))
        self.log_training(loss=loss, assignment_loss=assignment, mean_entropy=entropy, classifier_loss=classifier)
        return loss

    def _predictions(self, z: Tensor, labels: Tensor) -> Tensor:
        """Log-probabilities [n, c] of this process's views by the supports of all processes.

        Args:
            z: [m + n, d], the supports first.
            labels: of the supports, [m, c].
        """
        supports, queries = z[: len(labels)], z[len(labels) :]
        return soft_neighbours(queries, gather(supports), gather(labels), temperature=self.temperature)
