"""Mean shift among related images: what CMSF of stage 1 and of stage 3 share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def constrained_loss(predictions: Tensor, targets: Tensor, bank: Tensor, allowed: Tensor, k: int) -> Tensor:
    """2 − 2·cos of a prediction and the nearest rows of the bank that are allowed, averaged over those of an image.

    Args:
        predictions: [n, d].
        targets: [n, d], unit rows, that tell which are nearest.
        bank: [m, d], unit rows; no gradient flows into it.
        allowed: bool [n, m].
        k: rows for each image at most; fewer where fewer are allowed.

    Returns:
        [n], in float32 or better; 0 for an image without an allowed row.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        dtype = torch.promote_types(predictions.dtype, torch.float32)
        similar, nearest = (targets @ bank.T).masked_fill(~allowed, -torch.inf).topk(min(k, len(bank)), dim=1)
        there = similar.isfinite()
        cosines = F.cosine_similarity(predictions.to(dtype)[:, None], bank[nearest].detach().to(dtype), dim=2)
        return ((2 - 2 * cosines) * there).sum(1) / there.sum(1).clamp(min=1)


@torch.no_grad()
def ranks_of_allowed(targets: Tensor, bank: Tensor, there: Tensor, allowed: Tensor, k: int) -> Tensor:
    """The places of the rows that `constrained_loss` takes among all rows of the bank, by similarity.

    Args:
        targets: [n, d], unit rows.
        bank: [m, d], unit rows.
        there: bool [m], which rows have been written.
        allowed: bool [n, m], some of these.
        k: rows for each image at most.

    Returns:
        int64 [n, min(k, m)], ascending; 1 is the row nearest of all, and 0 stands where no more rows are allowed.
    """
    similar = (targets @ bank.T).masked_fill(~there, -torch.inf)
    order = similar.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(1, len(bank) + 1, device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    near = ranks.masked_fill(~allowed, len(bank) + 1).sort(1).values[:, :k]
    return near.masked_fill(near > len(bank), 0)
