"""Lightning's Trainer as this package runs it."""

import logging
import warnings
from typing import Any, ClassVar

import pytorch_lightning
import torch
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from usl_lightning.base.ranges import Ranges, above, at_least, whole
from usl_lightning.data.keys import derive_seed

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
        "accumulate_grad_batches": whole(1),
        "gradient_clip_val": at_least(0),
        "log_every_n_steps": whole(0),
        "val_check_interval": above(0),
        "num_nodes": whole(1),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signal_connector = _NoSignals(self)
        # Asks the main process for a SIGTERM before every step, and waits for the device to have the answer.
        self.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
