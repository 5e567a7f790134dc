"""What processes that train as one must keep to, and what is said when one of them does not."""

import time
from datetime import timedelta
from typing import Any, ClassVar, NoReturn

import pytorch_lightning
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from usl_lightning.base.errors import UslError
from usl_lightning.base.interrupt import Interruption
from usl_lightning.base.ranges import Ranged, Ranges, above, whole
from usl_lightning.compute.batch_norm import BatchNorm
from usl_lightning.compute.device import device_of
from usl_lightning.compute.distributed import gather, world_size
from usl_lightning.engine.trainer import LostChildError


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


class Stopping:
    """Whether the run is to end: the processes tell each other after steps, and before the batches of a validation.

    Args:
        interruption: the signals of this process; then also what signal another one got.

    Attributes:
        agreed: every process knows that it is.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption, self.agreed = interruption, False
        self._steps = self._batches = Agreement()
        self._turns = iter(range(0))

    def begin_steps(self, step: int) -> None:
        """Training starts, with as many steps done."""
        self._steps = Agreement(step)

    def after_step(self, step: int, late: bool, device: torch.device) -> bool:
        """Exchange who was asked to stop; whether any process is late, as far as they have talked (`Agreement`)."""
        (any_late,) = self._exchange(self._steps, step, int(late), device=device)
        return bool(any_late)

    def begin_batches(self, count: int, device: torch.device) -> None:
        """A validation starts, of as many batches on this process."""
        self._batches = Agreement()
        self._turns = iter(range(fewest(count, device=device)))

    def before_batch(self, device: torch.device) -> None:
        """Exchange who was asked to stop; some processes have one batch more, at which the others do not answer."""
        turn = next(self._turns, None)
        if turn is not None:
            self._exchange(self._batches, turn, device=device)

    def exchange(self, device: torch.device) -> None:
        """Exchange at once who was asked to stop, at a point that all processes reach."""
        self._exchange(Agreement(), 1, device=device)

    def _exchange(self, agreement: Agreement, turn: int, *values: int, device: torch.device) -> tuple[int, ...]:
        asked, *others = agreement.most(turn, self.interruption.signum or 0, *values, device=device)
        if asked:
            self.agreed, self.interruption.signum = True, asked
        return tuple(others)

    def leave(self, trainer: Trainer) -> NoReturn:
        """End the run; a launcher ends all processes as soon as one has gone, so first what remains to be done.

        Raises:
            KeyboardInterrupt: always.
        """
        if trainer.is_global_zero:
            self.interruption.requeue()
        trainer.strategy.barrier()
        raise KeyboardInterrupt


LOST = (
    "timed out", "timeout", "connection closed", "connection reset", "broken pipe", "connection refused",
    "remote process exited", "network error", "communicator was aborted",
)  # fmt: skip
"""How gloo and NCCL say that another process does not answer."""


class Processes(Ranged, Callback):
    """Sends between processes only the state that differs, and checks on request that nothing else does.

    Queues, banks, counters and moving averages are functions of the global batch, hence the same everywhere; DDP
    would send them all in every step. What a batch norm without synchronisation has seen is its process's own: the
    main process's statistics are sent to all before each step, so that all evaluate the same network.

    Args:
        check_every: steps between two comparisons of all weights and buffers, bit for bit; None: never. Each waits
            for the device and takes about as long as an optimizer step.
    """

    ranges: ClassVar[Ranges] = {"check_every": whole(1), "timeout_minutes": above(0, up_to=525_600)}

    def __init__(self, check_every: int | None = None) -> None:
        self.check_every = check_every
        self._step = 0

    def setup(self, trainer: pytorch_lightning.Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before DDP takes the model: tell it what not to send."""
        synced = getattr(trainer.strategy, "_layer_sync", None) is not None
        own = set() if synced else process_statistics(pl_module)
        same = [name for name, _ in pl_module.named_buffers() if name not in own]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, same)  # type: ignore[no-untyped-call]

    def on_train_start(self, trainer: pytorch_lightning.Trainer, pl_module: LightningModule) -> None:
        """Each process has read the checkpoint itself: all begin in the same state, or not at all."""
        if world_size() > 1:
            check_start(trainer.global_step, pl_module)

    def on_train_batch_end(
        self, trainer: pytorch_lightning.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the state after every `check_every`-th step."""
        step, before = trainer.global_step, self._step
        self._step = step
        if self.check_every and step != before and step % self.check_every == 0 and world_size() > 1:
            odd = unequal(common_state(pl_module))
            if odd is not None:
                raise UslError(
                    f"step {step}: {odd}: the processes no longer train the same model; go back to an earlier "
                    "checkpoint, and report it if the method is of this package"
                )


def syncs_batch_norm(model: nn.Module, wanted: bool, accelerator: str) -> bool:
    """Whether batch norm is to see the global batch.

    Args:
        model: MoCo, for one, has another remedy: its `sync_batch_norm` is False.
        wanted: `trainer.sync_batchnorm`.
        accelerator: as for the Trainer; PyTorch has a synchronised batch norm for CUDA alone.
    """
    return wanted and device_of(accelerator) == "cuda" and getattr(model, "sync_batch_norm", True)


def process_statistics(model: nn.Module) -> set[str]:
    """Names of the buffers of batch norms that see the images of their own process alone."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    }


def fingerprint(value: Tensor) -> Tensor:
    """Two int64 [2] that change, but for a chance of about 2^-64, when any bit of a tensor does."""
    words = value.detach().contiguous().view(-1).view(torch.uint8).long()
    place = torch.arange(1, len(words) + 1, device=words.device)
    mixed = (words + 1) * (place * 0x5851F42D4C957F2D + 0x14057B7EF767814F)  # int64 wraps round
    mixed = mixed ^ (mixed >> 29)
    return torch.stack([mixed.sum(), (mixed * (2 * place + 1)).sum()])


def common_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers that all processes share."""
    own = process_statistics(model)
    return {name: value for name, value in model.state_dict().items() if name not in own}


def unequal(state: dict[str, Tensor]) -> str | None:
    """Compare tensors over all processes: which differ, and on which process; None if none does.

    Args:
        state: of the same names and shapes on each of them.
    """
    prints = gather(torch.stack([fingerprint(value) for value in state.values()]).unsqueeze(0))
    odd = (prints != prints[:1]).any(2)  # [processes, tensors]
    if not odd.any():
        return None
    first = int(odd.any(0).nonzero()[0])
    process, count = int(odd[:, first].nonzero()[0]), int(odd.any(0).sum())
    name = list(state)[first]
    return f"{name} on process {process} is not what it is on process 0 ({count} of {len(state)} tensors differ)"


def check_start(step: int, model: nn.Module) -> None:
    """Refuse to train from states that differ.

    Args:
        step: optimizer steps done.
        model: whose state was read.

    Raises:
        UslError: names a process that stands elsewhere than the first.
    """
    device = next(model.parameters()).device
    steps = gather(torch.tensor([step], device=device)).tolist()
    same = "give all of them the same, whole file"
    for process, other in enumerate(steps):
        if other != steps[0]:
            raise UslError(f"process {process} has a checkpoint of step {other}, process 0 of step {steps[0]}; {same}")
    odd = unequal(common_state(model))
    if odd is not None:
        raise UslError(f"step {step}: {odd}: they have not read the same weights; {same}")


def set_timeout(strategy: Any, minutes: float) -> None:
    """How long a process waits for the others in one exchange.

    Args:
        strategy: Lightning's; only DDP has processes to wait for.
        minutes: longer than the main process needs for what it does alone, such as writing a checkpoint.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._timeout = timedelta(minutes=minutes)


def says_lost(error: BaseException) -> bool:
    """Whether an error is that of an exchange which another process did not answer, or of one that has ended."""
    text = str(error).lower()
    of_exchange = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    return isinstance(error, LostChildError) or (of_exchange and any(sign in text for sign in LOST))


def lost_peer(error: BaseException, rank: int, minutes: float, remedy: str) -> UslError:
    """What such an error means for the user.

    Args:
        error: as `says_lost` knows it.
        rank: of this process.
        minutes: `processes.timeout_minutes`.
        remedy: what to do.
    """
    what = f"another process has ended, or not answered for {minutes:g} minutes (processes.timeout_minutes)"
    return UslError(f"process {rank}: {error if isinstance(error, LostChildError) else what}; {remedy}")
