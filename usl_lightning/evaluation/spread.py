"""How features lie on the unit sphere, told without labels: their spread, alignment and uniformity."""

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features, averaged over their dimensions (SimSiam, section 4.1, Fig. 2).

    Args:
        features: [n, d], any float dtype, n ≥ 2; normalised here.

    Returns:
        A scalar in float32 or better: 0 when all features are the same (collapse), 1/√d when they are spread evenly
        over the sphere; d·std² ≤ 1 − |mean feature|².
    """
    return _unit(features).std(0, correction=0).mean()


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of positive pairs on the sphere (Wang & Isola, 2020, Eq. 2 with α = 2).

    Args:
        a, b: features [n, d] of two views of the same n images; normalised here.

    Returns:
        A scalar from 0 (views agree) to 4.
    """
    return (_unit(a) - _unit(b)).square().sum(1).mean()


def uniformity(features: Tensor) -> Tensor:
    """Logarithm of the mean Gaussian potential over all pairs (Wang & Isola, 2020, Eq. 3 with t = 2).

    Args:
        features: [n, d], n ≥ 2; normalised here. Time and memory grow with n².

    Returns:
        A scalar from −8 to 0; lower is more uniform: 0 when all are the same, about −4 for even spread over a sphere
        of many dimensions.
    """
    unit = _unit(features)
    potential = (4 * (unit @ unit.T - 1)).exp()  # −2·|x − y|² of unit vectors
    n = len(unit)
    return ((potential.sum() - potential.diagonal().sum()) / (n * (n - 1))).log()


def rankme(features: Tensor) -> Tensor:
    """How many directions features use: exp of the entropy of their singular values (Garrido et al., 2023, Eq. 1).

    Told without labels, it follows the accuracy of a linear probe over networks of one method that differ in their
    settings alone.

    Args:
        features: [n, d], as they are; what is no number counts as 0.

    Returns:
        A scalar in float32 or better, from 1 (one direction, or none) to min(n, d).
    """
    features = features.detach().nan_to_num(0.0, 0.0, 0.0)
    values = torch.linalg.svdvals(features.to(torch.promote_types(features.dtype, torch.float32)))
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp()


def _unit(features: Tensor) -> Tensor:
    features = features.detach()
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
