"""Lightning's Trainer, with selection as one more of its verbs."""

import logging
import warnings

import pytorch_lightning
import torch

from usl_lightning.data.keys import derive_seed
from usl_lightning.data.modules import ImageData
from usl_lightning.distributed import gather_uneven
from usl_lightning.selection.base import Selector

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


class Trainer(pytorch_lightning.Trainer):
    """Lightning's Trainer; `select` picks the images to label."""

    def select(self, model: Selector, datamodule: ImageData) -> torch.Tensor:
        """Compute the features of all images, on all devices, and choose.

        Args:
            model: the selector.
            datamodule: the images.

        Returns:
            `model.budget` distinct positions in the data set, int64, in order of choice; the same on every
            process.
        """
        if not model.uses_features:
            datamodule.setup("predict")
            return model.choose(torch.empty(len(datamodule.train_source), 0), datamodule.seed)
        batches = self.predict(model, datamodule=datamodule)
        features = gather_uneven(torch.cat(batches).to(self.strategy.root_device))  # type: ignore[arg-type]
        chosen = model.choose(features, datamodule.seed).to(features.device)
        return self.strategy.broadcast(chosen).cpu()
