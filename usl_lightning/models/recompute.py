"""Activation checkpointing (Chen et al., 2016): a block's activations are computed again when its gradient is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from usl_lightning.compute.batch_norm import batch_norms


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The blocks that a network is a sequence of: what stands in its outermost `nn.Sequential`s and has parts itself.

    A transition that is one layer alone is none: there is nothing to be saved.
    """
    blocks: list[nn.Module] = []
    for child in net.children():
        if isinstance(child, nn.Sequential):
            blocks += [part for part in child if any(True for _ in part.children())]
        else:
            blocks += blocks_of(child)
    return blocks


@contextmanager
def recomputed(net: nn.Module) -> Iterator[None]:
    """Within it a forward pass of `net` keeps the inputs of its blocks alone; a backward pass may come later.

    The results are the same, bit for bit: batch norm moves its statistics in the first pass only, and dropout draws
    the same again.
    """
    blocks = blocks_of(net)
    for block in blocks:
        block.forward = partial(_checkpointed, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block), **options)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norm computes just as before, but with a momentum of 0, and counts no batch."""
    norms = [norm for norm in batch_norms(block) if norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
