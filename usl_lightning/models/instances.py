"""Instance discrimination with a memory bank (Wu, Xiong, Yu and Lin, CVPR 2018), which NPID and PIRL share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.compute.distributed import gather
from usl_lightning.data.batch import Batch
from usl_lightning.models.guesses import last_places


def instance_loss(v: Tensor, bank: Tensor, indices: Tensor, *, temperature: float) -> Tensor:
    """−log of the probability that v is its own image among all: softmax of ⟨row, v⟩/τ over the bank (Eq. 2).

    Args:
        v: unit embeddings [n, d].
        bank: a unit row of each image, [N, d]; no gradient flows into it.
        indices: int64 [n], the images.
        temperature: τ, above 0.
    """
    return F.cross_entropy(v @ bank.detach().T / temperature, indices)


def instance_nce(own: Tensor, others: Tensor, log_z: Tensor, *, images: int) -> Tensor:
    """−log h(own) − Σ log(1 − h(other)), h = P/(P + m/N): own image or noise (Eqs. 4 to 7), averaged over the batch.

    Args:
        own: ⟨row, v⟩/τ of the image's own row, [n].
        others: those of m rows drawn at random, [n, m].
        log_z: log of the constant Z in P = exp(⟨row, v⟩/τ)/Z, scalar.
        images: N.
    """
    noise = math.log(others.shape[1] / images)
    return (F.softplus(noise - (own - log_z)) + F.softplus(others - log_z - noise).sum(1)).mean()


@torch.no_grad()
def move_rows(bank: Tensor, v: Tensor, indices: Tensor, momentum: float) -> None:
    """Move rows of a bank [N, d] towards v, [n, d]; of an image that is there twice, towards the last.

    Args:
        bank: unit rows; changed.
        v: unit rows.
        indices: int64 [n], whose they are.
        momentum: share of a row that is kept, in [0, 1].
    """
    new = torch.lerp(v[last_places(indices, len(bank))].to(bank.dtype), bank[indices], momentum)
    bank.index_copy_(0, indices, F.normalize(new, dim=1))


def noise_loss(
    v: Tensor, bank: Tensor, estimate: nn.Module, batch: Batch, *, negatives: int, temperature: float
) -> Tensor:
    """`instance_nce` of v with rows drawn at random. Z is estimated once, from the first batch: N times the mean of
    exp(⟨row, v⟩/τ) (§3.2).

    Args:
        v: unit embeddings of this process's images, [b, d].
        bank: a unit row of each image, [N, d].
        estimate: keeps `log_z` and whether it is `estimated`, as buffers.
        batch: of this process.
        negatives: m.
        temperature: τ.
    """
    images = len(bank)
    rows = torch.cat([batch.indices[:, None], batch.key.fold("noise").integers(negatives, images)], 1)
    logits = torch.einsum("nd,nmd->nm", v, bank[rows].to(v.dtype)) / temperature
    met = gather(logits.detach()).flatten()
    found = met.logsumexp(0) - math.log(len(met)) + math.log(images)
    log_z: Tensor = estimate.log_z  # type: ignore[assignment]
    log_z.copy_(torch.where(estimate.estimated, log_z, found.to(log_z.dtype)))  # type: ignore[arg-type]
    estimate.estimated.fill_(True)  # type: ignore[operator, union-attr]
    return instance_nce(logits[:, 0], logits[:, 1:], log_z.to(v.dtype), images=images)


def bank_loss(
    v: Tensor, bank: Tensor, estimate: nn.Module, batch: Batch, *, negatives: int | None, temperature: float
) -> Tensor:
    """`noise_loss`; without `negatives`, that is with all rows, `instance_loss`."""
    if negatives is None:  # a copy: the gradient needs the rows as they were
        return instance_loss(v, bank.to(v.dtype, copy=True), batch.indices, temperature=temperature)
    return noise_loss(v, bank, estimate, batch, negatives=negatives, temperature=temperature)


def check_negatives(negatives: int | None, images: int) -> None:
    """Refuse as many negatives as there are images.

    Raises:
        UslError: there are as many, or more.
    """
    if negatives is not None and negatives >= images:
        raise UslError(f"model.negatives: {negatives} of {images} images; use fewer, or null for all of them")
