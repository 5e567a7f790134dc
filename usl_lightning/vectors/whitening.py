"""Principal components made equally long, of features that may be spread over processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.compute.device import chunks
from usl_lightning.compute.distributed import Share
from usl_lightning.vectors.distances import check_features, exact_arithmetic

FLAT = 1e-6
"""Directions whose variance is below this share of the largest are rounding errors: they are left out."""


def whitened(features: Tensor, components: int, *, distributed: bool = False) -> Tensor:
    """The largest principal components, each divided by its standard deviation, as rows of length 1.

    Args:
        features: [n, d].
        components: at least 1; at most so many, the others are left out.
        distributed: the features are this process's share of all, in the order of the processes.

    Returns:
        [n, min(components, d)]; zeros in the directions in which all features are alike.

    Raises:
        UslError: features that are not finite.
    """
    x = check_features(features)
    mean, variances, axes = principal_axes(x, components, distributed=distributed)
    with exact_arithmetic(x.device):
        scales = torch.where(variances > FLAT * variances[0], variances, torch.inf).rsqrt()
        parts = chunks(len(x), 32 * x.shape[1], x.device)
        made = [F.normalize((x[part].double() - mean) @ (axes * scales), dim=1).to(x.dtype) for part in parts]
        return torch.cat(made)


def principal_axes(x: Tensor, components: int, *, distributed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of features [d], the variances along their largest principal components [c], and these [d, c].

    Args:
        x: [n, d], finite.
        components: at least 1; at most so many.
        distributed: the features are this process's share of all.

    Returns:
        In float64; the largest component first.
    """
    with exact_arithmetic(x.device):
        share = Share(len(x), x.device, distributed)
        mean = share.total(x.sum(0, dtype=torch.float64)) / share.count
        products = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
        for part in chunks(len(x), 32 * x.shape[1], x.device):
            centred = x[part].double() - mean
            products.addmm_(centred.T, centred)
        variances, axes = torch.linalg.eigh(share.total(products) / share.count)
        return mean, variances.flip(0)[:components], axes.flip(1)[:, :components]
