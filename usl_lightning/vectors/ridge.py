"""Ridge regression (Hoerl and Kennard, 1970) of many columns on the same rows."""

import torch
from torch import Tensor

from usl_lightning.vectors.distances import exact_arithmetic


class Ridge:
    """W of least |X·W − Y|² + penalty·|W|², for as many Y as come: what depends on X alone is computed once.

    Args:
        x: rows [n, d].
        penalty: above 0.
    """

    def __init__(self, x: Tensor, penalty: float) -> None:
        self.x, self.dual = x, len(x) < x.shape[1]
        with exact_arithmetic(x.device):
            square = (x @ x.T if self.dual else x.T @ x).double()
            square.diagonal().add_(penalty)
            self.factor = torch.linalg.cholesky(square).to(x.dtype)

    def weights(self, y: Tensor) -> Tensor:
        """W [d, columns] of Y [n, columns]."""
        with exact_arithmetic(self.x.device):
            if self.dual:
                return self.x.T @ torch.cholesky_solve(y, self.factor)
            return torch.cholesky_solve(self.x.T @ y, self.factor)
