"""Checks, unit rows and accurate distances, shared by the selectors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import chunks

NEAR = 1e-3
"""Pairs with a squared distance below this fraction of |x|² + |y|² are computed from their differences."""


def check_features(features: Tensor, name: str = "features") -> Tensor:
    """Return `features` [n, d] in float32, or float64 if that is what they are, without their gradient.

    Raises:
        UslError: not a floating-point matrix with at least one row and column, or not finite (the message
            names at most five rows).
    """
    if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
        raise UslError(
            f"{name}: expected a floating-point matrix [images, dimensions], "
            f"got {str(features.dtype).removeprefix('torch.')} {list(features.shape)}"
        )
    features = features.detach()
    if not all(bool(torch.isfinite(features[rows]).all()) for rows in chunks(len(features), 16 * features.shape[1])):
        rows = torch.nonzero(~torch.isfinite(features).all(1))[:, 0]
        raise UslError(f"{name}: NaN or infinite values in {_rows(rows)}; extract the features again")
    return features if features.dtype == torch.float64 else features.float()


def _rows(rows: Tensor) -> str:
    shown = ", ".join(str(row) for row in rows[:5].tolist())
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def check_budget(budget: int, n: int) -> None:
    """Raise UslError unless `budget` is within 1 … n."""
    if not 1 <= budget <= n:
        raise UslError(f"budget {budget}: expected a number of images from 1 to {n}, the size of the set")


def unit_rows(features: Tensor) -> Tensor:
    """`features` [n, d] with rows of length 1, as float32 (float64 stays float64).

    Raises:
        UslError: as `check_features`, or rows of zeros, which have no direction.
    """
    features = check_features(features)
    check_directions(features)
    norms = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64)
    out = torch.empty_like(features)
    for rows in chunks(len(features), 16 * features.shape[1]):
        out[rows] = (features[rows].double() / norms[rows, None]).to(out.dtype)
    return out


def check_directions(features: Tensor, name: str = "features") -> None:
    """Raise UslError if rows of features [n, d] are all zeros; the message names at most five."""
    zeros = torch.nonzero(~features.any(1))[:, 0]
    if len(zeros):
        raise UslError(f"{name}: all zeros in {_rows(zeros)}; such an image has no direction to compare")


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradient, no autocast, and float32 products in float32 (neither TF32 nor bfloat16) inside."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances between the rows of x [a, d] and y [b, d], as float32 [a, b].

    The products are taken in float64, and close pairs from their differences, so the result is the exact
    distance rounded to float32 (to within one rounding in about 1e5): equal rows are at distance exactly 0,
    and the same two rows are always at the same distance. Memory: 24 bytes an entry, so call it on chunks.
    """
    x64, y64 = x.double(), y.double()
    norms = x64.square().sum(1)[:, None] + y64.square().sum(1)
    distances = torch.addmm(norms, x64, y64.T, alpha=-2)
    near = torch.nonzero(distances < NEAR * norms)
    for part in chunks(len(near), 32 * x.shape[1], x.device):
        i, j = near[part].unbind(1)
        distances[i, j] = (x64[i] - y64[j]).square().sum(1)
    # Rows of zeros on both sides are not "near" by the strict comparison; they may have rounded below 0.
    return distances.clamp_(min=0).float()
