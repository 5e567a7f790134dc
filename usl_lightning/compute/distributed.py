"""The global batch, seen from one process."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in the order of the global slots: [b, …] -> [b·world, …].

    Gradients flow back to every process: with the loss computed on the global batch by each of them and
    averaged by DDP, the result is the single-process gradient.
    """
    if world_size() == 1:
        return x
    if x.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(x.contiguous()))  # type: ignore[no-untyped-call]
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def gather_uneven(x: Tensor) -> Tensor:
    """Rows of all processes, whose numbers may differ: [b_r, …] -> [Σ b_r, …]. No gradient."""
    if world_size() == 1:
        return x
    counts = gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: len(x)] = x
    rows = torch.split(gather(padded), max(counts))
    return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, on each of them; of integers it is exact. No gradient."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def largest(x: Tensor) -> Tensor:
    """The largest of x over all processes, entry by entry, on each of them. No gradient."""
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


class Share:
    """Rows of one thing that the processes have between them, in their order; or one process all of them.

    Args:
        rows: how many this process has, at least 1.
        device: of what is exchanged.
        distributed: whether the others have more of them.

    Attributes:
        count: rows of all processes.
        first: the number of this process's first row among all.
    """

    def __init__(self, rows: int, device: torch.device, distributed: bool) -> None:
        self.distributed, self._device = distributed and world_size() > 1, device
        counts = gather(torch.tensor([rows], device=device)).tolist() if self.distributed else [rows]
        rank = dist.get_rank() if self.distributed else 0
        self.count, self.first, self._counts, self._rank = sum(counts), sum(counts[:rank]), counts, rank

    def total(self, x: Tensor) -> Tensor:
        """See `total`."""
        return total(x) if self.distributed else x

    def largest(self, x: Tensor) -> Tensor:
        """See `largest`."""
        return largest(x) if self.distributed else x

    def gathered(self, x: Tensor) -> Tensor:
        """Those of all processes, of as many rows each: [processes, …]."""
        return gather(x[None]) if self.distributed else x[None]

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows [m, …] by their numbers among all, on every process.

        Args:
            x: [n, …], of this process.
            positions: int64 [m], the same on every process.
        """
        own = positions.to(x.device) - self.first
        here = (own >= 0) & (own < len(x))
        rows = x.new_zeros(len(own), *x.shape[1:])
        rows[here] = x[own[here]]
        return self.total(rows)

    def each(self, x: Tensor) -> Iterator[Tensor]:
        """The rows [n_r, d] of each process in turn, on every process: no more than one other's at a time."""
        for rank, count in enumerate(self._counts):
            rows = x.contiguous() if rank == self._rank else x.new_empty(count, *x.shape[1:])
            if self.distributed:
                dist.broadcast(rows, rank)
            yield rows


def mean_over_processes(**values: Tensor) -> dict[str, Tensor]:
    """Means of scalars over all processes, for logs: one reduction for all of them. No gradient."""
    if world_size() == 1:
        return {name: value.detach() for name, value in values.items()}
    total = torch.stack([value.detach().float() for value in values.values()])
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).unbind(), strict=True))
