"""Lightning's Trainer as this package runs it: its processes, its randomness, and what it refuses to go on with."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, ClassVar

import pytorch_lightning
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.compute.batch_norm import batch_norms
from usl_lightning.compute.device import device_of
from usl_lightning.data.keys import derive_seed
from usl_lightning.models.ema import EMA

log = logging.getLogger(__name__)


def check_precision(precision: str | int | None, accelerator: str) -> None:
    """Refuse what Lightning would silently replace by another precision, or emulate.

    Args:
        precision: as for Lightning's Trainer, `bf16-mixed`; None is full precision.
        accelerator: as for the Trainer; `auto` is a GPU if there is one.

    Raises:
        UslError: the device lacks it; names those that it has.
    """
    kind = str(precision)
    device = device_of(accelerator)
    if device == "cpu" and kind in ("16", "16-mixed", "16-true"):
        raise UslError(f"trainer.precision: {kind} is not for a CPU; use bf16-mixed or 32-true")
    if device == "cuda" and kind.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise UslError(f"trainer.precision: {name} does not compute in {kind}; use 16-mixed or 32-true")
    if device == "mps" and kind.startswith("64"):
        raise UslError(f"trainer.precision: Apple GPUs do not compute in {kind}; use 32-true")


def check_averages(network: nn.Module, precision: str | int | None) -> None:
    """Refuse weights of 16 bits where a moving average takes steps too small for them: it would stand still.

    Args:
        network: with its moving averages of weights (`EMA`) and of batch statistics.
        precision: as for Lightning's Trainer.

    Raises:
        UslError: a step is smaller than 4 units in the last place.
    """
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(str(precision))
    if dtype is None:
        return
    averages = [(1 - part.decay, "the weights") for part in network.modules() if isinstance(part, EMA) and part.decay]
    averages += [(n.momentum, "batch norm's statistics") for n in batch_norms(network) if n.momentum is not None]
    step, what = min(averages, default=(1.0, ""))
    if step < 4 * torch.finfo(dtype).eps:
        mixed = str(precision).replace("true", "mixed")
        raise UslError(
            f"trainer.precision: a moving average of {what} in steps of {step:.2g} would stand still in {precision}; "
            f"use {mixed}"
        )


class StopOnNaN(Callback):
    """Ends a run after a loss that is not finite, before it is saved, and names the step of that loss.

    Args:
        every: batches between looks; each look waits for the device.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._step = 0  # the one being taken
        self._first: Tensor | None = None  # on the device: the first step of such a loss; 0 if there was none

    def on_train_batch_start(
        self, trainer: pytorch_lightning.Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step: it is counted on before the end of its last batch."""
        self._step = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: pytorch_lightning.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember on the device whether the loss is finite; look from time to time."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            bad = loss.detach().isfinite().logical_not() * self._step
            self._first = bad if self._first is None else torch.where(self._first > 0, self._first, bad)
        if (batch_idx + 1) % self.every == 0:
            self._look()

    def on_save_checkpoint(
        self, trainer: pytorch_lightning.Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Never save what cannot be continued."""
        self._look()
        for name, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise UslError(_not_finite(trainer.global_step, name))

    def _look(self) -> None:
        first = 0 if self._first is None else int(self._first)
        if first:
            raise UslError(_not_finite(first, "the loss"))


def _not_finite(step: int, what: str) -> str:
    return (
        f"step {step}: {what} is not finite; the last good checkpoint is kept. "
        "Lower model.optimizer.lr or use --trainer.precision 32-true"
    )


STOPPED = 130
"""Exit code of a process that was told to stop."""

NOTICE = signal.SIGUSR2
"""By this the watching thread has the main one raise."""


class LostChildError(RuntimeError):
    """A process that trains with this one has ended."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, but for this: when a process ends badly, Lightning kills the main one within seconds.

    Here the main one is given `grace` seconds to notice by itself, as it does in the next exchange with the process;
    then an error is raised in it; if it cannot even be raised, in a kernel that waits for ever, it says why and ends.

    Attributes:
        grace: seconds.
    """

    grace = 5.0

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: pytorch_lightning.Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Start the other processes, unless they have been, and call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        over = threading.Event()
        if self.procs:
            signal.signal(NOTICE, self._raise)
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            return function(*args, **kwargs)
        finally:
            over.set()

    def lost(self) -> tuple[int, int] | None:
        """The first process that has ended badly, and its exit code."""
        for rank, process in enumerate(self.procs, 1):
            if process.poll():
                return rank, process.returncode
        return None

    def was_stopped(self, seconds: float = 3.0) -> bool:
        """Whether a process was told to stop; one that is about to end is waited for that long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.procs and self.lost() is None:
            time.sleep(0.05)
        return any(process.returncode == STOPPED for process in self.procs)

    def finish(self, *, failed: bool) -> None:
        """After a failure, kill what is left of the other processes: they would tell of this one's end."""
        if failed:
            self.kill(signal.SIGKILL)
            self.procs.clear()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.5):
            if self.lost() is not None:
                break
        else:
            return
        for _ in range(6):
            if over.wait(self.grace):
                return
            os.kill(os.getpid(), NOTICE)
        if not over.wait(self.grace):
            print(f"usl: {self._what()}", file=sys.stderr, flush=True)
            self.finish(failed=True)
            os._exit(2)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        lost = self.lost()
        if lost is None or isinstance(sys.exc_info()[1], (RuntimeError, KeyboardInterrupt)):
            return  # it is being dealt with
        raise KeyboardInterrupt if lost[1] == STOPPED else LostChildError(self._what())

    def _what(self) -> str:
        rank, code = self.lost() or (0, 0)
        return f"process {rank} was killed by signal {-code}" if code < 0 else f"process {rank} failed ({code})"


def cluster_environment() -> ClusterEnvironment | None:
    """How the processes of a SLURM job find each other; None outside of one, where Lightning knows best.

    What `srun` starts is one task of several. What a batch script or a notebook in a job starts without it is one
    process, however many tasks the job may have; then torchrun may start more.

    Raises:
        UslError: the job's variables fit together in no way.
    """
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if any(name.startswith("SLURM_STEP_") for name in os.environ):
        try:
            return SLURMEnvironment(auto_requeue=False)  # Lightning's requeueing saves elsewhere, amid a step
        except (RuntimeError, ValueError) as error:
            raise UslError(f"SLURM: {' '.join(str(error).split())}") from error
    if os.environ["SLURM_NTASKS"] != "1":
        log.warning(
            "SLURM_NTASKS is %s, but not srun started this process: it runs alone; `srun usl …` starts all tasks",
            os.environ["SLURM_NTASKS"],
        )
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()


def watch_children(strategy: Any) -> None:
    """Take our launcher where Lightning's would start the processes of a DDP strategy."""
    if isinstance(strategy, DDPStrategy) and type(strategy.launcher) is _SubprocessScriptLauncher:
        assert strategy.cluster_environment is not None
        strategy._launcher = Launcher(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)


# Said at every start, about choices made on purpose here.
for _message in (
    ".*does not have many workers.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*num_workers.*bottleneck.*",
    ".*batch_size.*ambiguous.*",
    ".*LeafSpec.*",
    ".*in eval mode at the start of training.*",
):
    warnings.filterwarnings("ignore", _message)
for _name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class KeyedRandomness(pytorch_lightning.Callback):
    """Makes what a network draws itself (dropout, drop-path) a function of the step, so that a resume repeats it.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pytorch_lightning.Trainer, pl_module: object, batch: object, batch_idx: int
    ) -> None:
        """Seed the generators of this process for one micro-batch."""
        micro = batch_idx % trainer.accumulate_grad_batches
        torch.manual_seed(derive_seed(self.seed, "network", trainer.global_step, micro, trainer.global_rank))


class _NoSignals(_SignalConnector):
    """Leaves signals to `Interruption`: Lightning's handler of SIGTERM waits for the other processes to get one."""

    def register_signal_handlers(self) -> None:
        """None are."""


class Trainer(pytorch_lightning.Trainer):
    """Lightning's Trainer without its handlers of signals."""

    ranges: ClassVar[Ranges] = {
        "max_steps": whole(1, unset=-1),  # as a method that takes no steps has it in its config.yaml
        "accumulate_grad_batches": whole(1),
        "gradient_clip_val": at_least(0),
        "log_every_n_steps": whole(1),
        "check_val_every_n_epoch": whole(1),
        "val_check_interval": above(0),
        "num_nodes": whole(1),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signal_connector = _NoSignals(self)
        # Asks the main process for a SIGTERM before every step, and waits for the device to have the answer.
        self.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
