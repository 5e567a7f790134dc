"""What the methods that guess labels share: distributions aligned and sharpened, histories in the checkpoint."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def align(probs: Tensor, mean: Tensor, target: Tensor | None = None) -> Tensor:
    """Distribution alignment: divide by the mean prediction, multiply by what it should be, normalise.

    Berthelot et al., 2020 (ReMixMatch), §3.1; with uniform targets CoMatch's (§3.2) and SoftMatch's.

    Args:
        probs: [n, c], each row a distribution.
        mean: [c], the mean prediction of late.
        target: [c], the shares of the classes; None: all alike.

    Returns:
        [n, c], each row a distribution.
    """
    aligned = probs / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    if target is not None:
        aligned = aligned * target
    return aligned / aligned.sum(1, keepdim=True)


def sharpened(probs: Tensor, *, temperature: float) -> Tensor:
    """Distributions [..., c] to the power of 1/T, normalised (MixMatch, Eq. 7).

    Args:
        probs: [..., c], each a distribution.
        temperature: T, above 0; 1 leaves them as they are.
    """
    return (probs.log() / temperature).softmax(-1)


def posterior_logits(logits: Tensor, prior: Tensor) -> Tensor:
    """log of (prior + softmax(logits)) / (1 + the prior's sum), AS3L's posterior (Wen et al., 2022, Eq. 5).

    Args:
        logits: [n, c].
        prior: [n, c], class shares that sum up to 1 at most.

    Returns:
        [n, c]; rows without a prior are the logits themselves, bit for bit.
    """
    total = prior.sum(1, keepdim=True)
    posterior = (prior + logits.softmax(1)) / (1 + total)
    return torch.where(total > 0, posterior.clamp_min(torch.finfo(logits.dtype).tiny).log(), logits)


def fixmatch_loss(weak_logits: Tensor, strong_logits: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the strong view against the confident hard pseudo-label of the weak one (FixMatch, Eq. 4).

    Args:
        weak_logits: [n, classes], of the network itself or of a teacher; no gradient flows into them.
        strong_logits: [n, classes].
        threshold: τ, in [0, 1]; a pseudo-label counts if its probability is at least that.

    Returns:
        The loss, averaged over all n (those below the threshold count as 0), and the mask, bool [n].
    """
    confidence, pseudo_labels = weak_logits.detach().softmax(1).max(1)
    mask = confidence >= threshold
    losses = F.cross_entropy(strong_logits, pseudo_labels, reduction="none")
    return (losses * mask).mean(), mask


def thresholded_loss(weak_logits: Tensor, strong_logits: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """FixMatch's loss with a threshold for each class (FlexMatch, Eqs. 4 and 10; FreeMatch, Eq. 8).

    Args:
        weak_logits: [n, c]; no gradient flows into them.
        strong_logits: [n, c].
        thresholds: [c]; a pseudo-label counts if its probability is at least that of its class.

    Returns:
        The loss, averaged over all n (those below their threshold count as 0), and the mask, bool [n].
    """
    confidence, pseudo_labels = weak_logits.detach().softmax(1).max(1)
    mask = confidence >= thresholds[pseudo_labels]
    losses = F.cross_entropy(strong_logits, pseudo_labels, reduction="none")
    return (losses * mask).mean(), mask


def squared_difference(logits: Tensor, targets: Tensor) -> Tensor:
    """The squared difference of predictions and targets, a mean over images and classes: MixMatch's, Π's, …

    Args:
        logits: [n, c].
        targets: [n, c], each row a distribution; no gradient flows into them.
    """
    return F.mse_loss(logits.softmax(1), targets.detach())


def consistency_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """`squared_difference` of two predictions: of two views (Π-model, Alg. 1), of student and teacher (mean teacher).

    Args:
        logits: of one view, [n, classes].
        target_logits: of the other, [n, classes]; no gradient flows into them.
    """
    return squared_difference(logits, target_logits.softmax(1))


def class_shares(labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Sums of weights [n] over the images of each class, [c], of labels int64 [n]; the host does not wait for them."""
    return torch.zeros(classes, dtype=weights.dtype, device=weights.device).scatter_add_(0, labels, weights)


def moving_average(old: Tensor, new: Tensor, *, momentum: float) -> Tensor:
    """momentum·old + (1 − momentum)·new, in the precision of `old`."""
    return torch.lerp(new.to(old.dtype), old, momentum)


@torch.no_grad()
def remember(table: Tensor, indices: Tensor, rows: Tensor) -> None:
    """Put rows [n, …] into those of a table that `indices`, int64 [n], name; of one named twice the last counts."""
    table.index_copy_(0, indices, rows[last_places(indices, len(table))].to(table.dtype))


def last_places(indices: Tensor, count: int) -> Tensor:
    """Of each of these places, int64 [n], the last one that is of the same image; `count`: of the images there are."""
    slots = torch.arange(len(indices), device=indices.device)
    last = torch.zeros(count, dtype=torch.long, device=indices.device).scatter_reduce_(0, indices, slots, "amax")
    return last[indices]


class Ring(nn.Module):
    """The newest rows of a stream, in the state dict.

    Args:
        size: rows kept.
        width: their length.
        dtype: of their entries.
    """

    rows: Tensor
    written: Tensor

    def __init__(self, size: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width, dtype=dtype))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def write(self, rows: Tensor) -> None:
        """Add rows [n, width], the oldest first, in place of the oldest."""
        size, kept = len(self.rows), rows[-len(self.rows) :]
        first = self.written + len(rows) - len(kept)
        places = (first + torch.arange(len(kept), device=rows.device)) % size
        self.rows.index_copy_(0, places, kept.to(self.rows.dtype))
        self.written += len(rows)

    def mean(self) -> Tensor:
        """Mean of the rows there are, [width]."""
        return self.rows.sum(0) / self.written.clamp(1, len(self.rows))

    def full(self, before: int = 0) -> Tensor:
        """Whether every row has been written, and was so `before` writes of a row ago; bool []."""
        return self.written - before >= len(self.rows)
