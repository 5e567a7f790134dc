"""Lightning's Trainer, with selection as one more of its verbs."""

import logging
import warnings
from typing import Any, NamedTuple

import pytorch_lightning
import torch
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from usl_lightning.data.keys import derive_seed
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import StepLoader
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.base import Selector
from usl_lightning.selection.picks import keep_first

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


class Selection(NamedTuple):
    """What `Trainer.select` returns, on every process.

    Attributes:
        indices: int64 [budget] on the CPU, distinct positions in the data set: the kept ones, then in order of choice.
        evidence: features [n, d] that the choice was made from; for random and stratified those for the report.
        kept: the images that were to be kept, if any; the first of `indices`.
    """

    indices: torch.Tensor
    evidence: torch.Tensor
    kept: LabelIndex | None


class _NoSignals(_SignalConnector):
    """Leaves signals to `Interruption`: Lightning's handler of SIGTERM waits for the other processes to get one."""

    def register_signal_handlers(self) -> None:
        """None are."""


class Trainer(pytorch_lightning.Trainer):
    """Lightning's Trainer; `select` picks the images to label."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signal_connector = _NoSignals(self)
        # Asks the main process for a SIGTERM before every step, and waits for the device to have the answer.
        self.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def select(self, model: Selector, datamodule: ImageData) -> Selection:
        """Compute the features of all images, on all devices, and choose.

        Args:
            model: the selector.
            datamodule: the images.
        """
        datamodule.trainer = self
        kept = model.kept(datamodule)
        if model.needs_network:
            # Lightning sets up processes and devices; the one "batch" is the data set as a whole.
            whole = StepLoader(lambda _: datamodule, stop=1)
            evidence: torch.Tensor = self.predict(model, whole)[0]  # type: ignore[index,assignment]
        else:
            datamodule.setup("predict")
            evidence = model.evidence(datamodule)
        evidence = evidence.to(self.strategy.root_device)
        chosen = model.choose(evidence, datamodule.seed).to(evidence.device)
        if kept is not None:
            chosen = keep_first(torch.tensor(kept.indices, device=chosen.device), chosen, model.points(evidence))
        return Selection(self.strategy.broadcast(chosen.cpu()), evidence, kept)
