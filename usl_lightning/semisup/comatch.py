"""CoMatch: Semi-supervised Learning with Contrastive Graph Regularization (Li et al., 2021)."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.ranges import Ranges, above, at_least, whole, within
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.distributed import gather
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import ImageSpec, SemiBatch
from usl_lightning.models.guesses import Ring, align
from usl_lightning.semisup.semisup_module import NetworkOptions, SemiSupervisedModule


def smooth(
    probs: Tensor, embeddings: Tensor, bank_probs: Tensor, bank_embeddings: Tensor, *, weight: float, temperature: float
) -> Tensor:
    """Memory-smoothed pseudo-labels: `weight` of the own, the rest of similar images in the bank (Eqs. 4 and 5).

    Args:
        probs: [n, c], each row a distribution.
        embeddings: [n, d], of norm 1.
        bank_probs: [k, c].
        bank_embeddings: [k, d], of norm 1.
        weight: α, in [0, 1].
        temperature: above 0; of the softmax over the similarities to the bank.

    Returns:
        [n, c], each row a distribution if those of the bank are.
    """
    attention = (embeddings @ bank_embeddings.T / temperature).softmax(1)
    return weight * probs + (1 - weight) * attention @ bank_probs


def pseudo_label_graph(probs: Tensor, *, threshold: float) -> Tensor:
    """The graph of images whose pseudo-labels agree, with self-loops (Eq. 7), its rows normalised.

    Args:
        probs: [n, c], each row a distribution.
        threshold: pairs whose pseudo-labels have a smaller inner product are not connected; at most 1.

    Returns:
        [n, n], each row a distribution.
    """
    similarity = (probs @ probs.T).fill_diagonal_(1)
    edges = torch.where(similarity >= threshold, similarity, 0)
    return edges / edges.sum(1, keepdim=True)


def graph_contrastive_loss(z0: Tensor, z1: Tensor, graph: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy between the pseudo-label graph and the embedding graph of two views (Eqs. 8 to 10).

    Args:
        z0, z1: embeddings of the two views, [n, d], of norm 1; row i of both is image i.
        graph: [n, n], each row a distribution.
        temperature: above 0.

    Returns:
        The mean over the n rows, a scalar. (The published code adds 1e-7 inside the logarithm; this does not.)
    """
    return F.cross_entropy(z0 @ z1.T / temperature, graph)


def confident_cross_entropy(logits: Tensor, targets: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with soft targets, of the confident ones alone (Eq. 3).

    Args:
        logits: [n, c].
        targets: [n, c], each row a distribution.
        threshold: τ; a target counts if its largest probability is at least that.

    Returns:
        The loss, averaged over all n (those below the threshold count as 0), and the mask, bool [n].
    """
    mask = targets.max(1).values >= threshold
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * mask).mean(), mask


class CoMatch(SemiSupervisedModule):
    """Class probabilities and embeddings learn together, by pseudo-labels smoothed over similar images and by a graph.

    As on CIFAR in the paper: pseudo-labels and bank are of the online network. All of it is of the global batch.

    Args:
        image: channels, size, statistics and classes of the images; the command line takes it from the data.
        weak: view of labelled images, and of the unlabelled ones whose label is guessed.
        strong: view of the unlabelled images that learn the guess.
        other_strong: another strong view of them, whose embedding is to resemble that of the first.
        optimizer: how the weights are updated.
        threshold: τ, the least probability of a pseudo-label that is learned.
        graph_threshold: least inner product of two pseudo-labels that connects them.
        temperature: of the similarities of embeddings.
        smoothing: share of a pseudo-label that comes from similar images; α = 1 − smoothing.
        bank_size: images the pseudo-labels are smoothed over; labelled and unlabelled, the newest. Published: 5
            batches of B + μB, and smoothing from the 7th step on, the second with a full bank.
        aligned_batches: batches over which predictions are averaged for the distribution alignment.
        embedding_dim: of the projection head, whose hidden layer is as wide as the features.
        unlabelled_weight: λ_u, the weight of the unlabelled loss.
        contrastive_weight: λ_c, the weight of the contrastive loss.
        network: the network, what it starts from, and a prior: see `SemiSupervisedModule`.
    """

    ranges: ClassVar[Ranges] = {
        "threshold": within(0, 1),
        "graph_threshold": within(0, 1),
        "temperature": above(0),
        "smoothing": within(0, 1),
        "bank_size": whole(1),
        "aligned_batches": whole(1),
        "embedding_dim": whole(1),
        "unlabelled_weight": at_least(0),
        "contrastive_weight": at_least(0),
    }
    revision: int = 2

    def __init__(
        self,
        image: ImageSpec,
        weak: nn.Module,
        strong: nn.Module,
        other_strong: nn.Module,
        optimizer: Optimization,
        threshold: float = 0.95,
        graph_threshold: float = 0.8,
        temperature: float = 0.2,
        smoothing: float = 0.1,
        bank_size: int = 2560,
        aligned_batches: int = 32,
        embedding_dim: int = 64,
        unlabelled_weight: float = 1.0,
        contrastive_weight: float = 1.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(image, optimizer, **network)
        self.weak, self.strong, self.other_strong = weak, strong, other_strong
        self.threshold, self.graph_threshold = threshold, graph_threshold
        self.temperature, self.smoothing = temperature, smoothing
        self.unlabelled_weight, self.contrastive_weight = unlabelled_weight, contrastive_weight
        d = self.model.encoder.feature_dim
        self.projector = nn.Sequential(nn.Linear(d, d), nn.LeakyReLU(0.1, inplace=True), nn.Linear(d, embedding_dim))
        self.mean_probs = Ring(aligned_batches, image.num_classes)
        self.bank_probs = Ring(bank_size, image.num_classes)
        self.bank_embeddings = Ring(bank_size, embedding_dim)

    def training_step(self, batch: SemiBatch, batch_idx: int) -> Tensor:
        """The loss of one global batch (Alg. 1)."""
        labelled, unlabelled = batch
        views = [
            self.weak(labelled.images, labelled.key.fold("weak")),
            self.weak(unlabelled.images, unlabelled.key.fold("weak")),
            self.strong(unlabelled.images, unlabelled.key.fold("strong")),
            self.other_strong(unlabelled.images, unlabelled.key.fold("other strong")),
        ]
        features = self.model.encoder(torch.cat(views))
        logits = full_precision(self.model.head(features))
        z = F.normalize(full_precision(self.projector(features)), dim=1)
        groups = torch.split(torch.cat([logits, z], dim=1), [len(view) for view in views])
        (x, z_x), (weak, z_weak), (strong, z0), (_, z1) = (
            torch.split(gather(group), [logits.shape[1], z.shape[1]], dim=1) for group in groups
        )
        labels = gather(labelled.labels)
        weak = self.guided(weak, gather(unlabelled.indices))
        with torch.autocast(z.device.type, enabled=False):  # similarities of 8 bits would blur the graph
            targets = self.pseudo_labels(weak, z_weak, labels, z_x)
            graph = pseudo_label_graph(targets, threshold=self.graph_threshold)
            supervised = F.cross_entropy(x, labels)
            unsupervised, mask = confident_cross_entropy(strong, targets, threshold=self.threshold)
            contrastive = graph_contrastive_loss(z0, z1, graph, temperature=self.temperature)
        loss = supervised + self.unlabelled_weight * unsupervised + self.contrastive_weight * contrastive
        self.log_guesses(targets, mask)
        self.log_training(
            loss=loss,
            supervised_loss=supervised,
            unsupervised_loss=unsupervised,
            contrastive_loss=contrastive,
            neighbors=(graph > 0).sum(1).float().mean() - 1,
        )
        return loss

    @torch.no_grad()
    def pseudo_labels(self, weak_logits: Tensor, z_weak: Tensor, labels: Tensor, z_labelled: Tensor) -> Tensor:
        """Aligned and, from the step after the first with a full bank, smoothed predictions [n, c].

        Then they join history and bank.

        Args:
            weak_logits, z_weak: logits [n, c] and embeddings [n, d] of the unlabelled images of the global batch.
            labels, z_labelled: labels int64 [b] and embeddings [b, d] of the labelled ones.
        """
        probs = weak_logits.softmax(1)
        self.mean_probs.write(probs.mean(0, keepdim=True))
        aligned = align(probs, self.mean_probs.mean())
        smoothed = smooth(
            aligned,
            z_weak,
            self.bank_probs.rows.to(aligned.dtype),
            self.bank_embeddings.rows.to(z_weak.dtype),
            weight=1 - self.smoothing,
            temperature=self.temperature,
        )
        # As in the published code, which waits a batch longer than the bank needs to be full.
        targets = torch.where(self.bank_probs.full(before=len(probs) + len(labels)), smoothed, aligned)
        self.bank_probs.write(torch.cat([aligned, F.one_hot(labels, probs.shape[1])]))
        self.bank_embeddings.write(torch.cat([z_weak, z_labelled]))
        return targets
