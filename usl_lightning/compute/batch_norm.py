"""Which layers are batch norms, and how to leave their statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
"""PyTorch's, and their subclasses (timm's are): what their common base is, by public names."""


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """The batch norms of a network, at any depth."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises with the batch, as in training, but leaves its running statistics as they are."""
    norms = [norm for norm in batch_norms(network) if norm.track_running_stats]
    training = [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, mode in zip(norms, training, strict=True):
            norm.training, norm.track_running_stats = mode, True
