"""What processes that train together tell each other now and then."""

import time

import torch
import torch.distributed as dist

from usl_lightning.compute.distributed import world_size


class Agreement:
    """Tells every process at the same step what any of them knows, about once a second: they talk no more than that.

    Args:
        step: optimizer steps done so far.
    """

    LONGEST = 10
    """Steps between two exchanges at most: steps that become slow, of a second each, are noticed within 10 s."""

    def __init__(self, step: int = 0) -> None:
        self._next, self._last, self._time = step + 1, step, time.monotonic()

    def most(self, step: int, *values: int, device: torch.device) -> tuple[int, ...]:
        """The largest of each value on any process; zeros between two exchanges.

        Args:
            step: optimizer steps done, the same on every process.
            values: 0 or more.
            device: of the process group.
        """
        if world_size() == 1:
            return values
        if step < self._next:
            return (0,) * len(values)
        now = time.monotonic()
        pace = (now - self._time) / max(1, step - self._last)
        pause = min(self.LONGEST, max(1, int(1 / max(pace, 1e-9))))
        told = torch.tensor([*values, -pause], dtype=torch.long, device=device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        *found, pause = told.tolist()
        self._next, self._last, self._time = step - pause, step, now
        return tuple(found)


def fewest(count: int, device: torch.device) -> int:
    """The smallest count of any process.

    Args:
        count: of this one.
        device: of the process group.
    """
    if world_size() == 1:
        return count
    told = torch.tensor(count, device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MIN)
    return int(told)
