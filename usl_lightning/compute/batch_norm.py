"""Which layers are batch norms."""

from torch import nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
"""PyTorch's, and their subclasses (timm's are): what their common base is, by public names."""


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """The batch norms of a network, at any depth."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]
