"""Small runs of training: of a model that a test makes, and what is done to those of the command."""

import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule
from torch import nn

from usl_lightning.base.interrupt import Interruption
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.modules import ImageData, SemiSupervisedData
from usl_lightning.engine.checkpoints import Checkpoints
from usl_lightning.engine.logs import MetricsCSV, Progress
from usl_lightning.engine.processes import Processes
from usl_lightning.engine.trainer import KeyedRandomness, StopOnNaN, Trainer
from usl_lightning.labels import LabelIndex

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["usl_lightning.stage.runner", "sklearn.datasets"])  # takes longer than what they do

TOGETHER = "cuda" if torch.cuda.device_count() > 1 else "cpu"
"""Where two processes train as one."""

MakeModel = Callable[[ImageData], LightningModule]
MakeData = Callable[[], ImageData]


def digits() -> ImageData:
    """The 1,437 training digits, 32 a step."""
    return ImageData("digits", batch_size=32, seed=3)


def few_labels() -> SemiSupervisedData:
    """The same, 20 of them labelled; 8 labelled and 24 unlabelled a step."""
    source = open_source("digits", "train")
    labels = tuple(source.labels[:20].tolist())
    path = Path(tempfile.mkdtemp()) / "labels.json"
    LabelIndex(dataset_id(source), {}, tuple(range(20)), labels, source.classes).write(path)
    return SemiSupervisedData(str(path), batch_size=8, unlabelled_ratio=3, dataset="digits", seed=3)


class StopError(Exception):
    """A run was stopped on purpose."""


class Stop(Callback):
    """Ends a run before the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Nothing of the next step has happened yet."""
        if trainer.global_step == self.step:
            raise StopError


class Gradients(Callback):
    """Keeps the gradient of every step, as the optimizer gets it, in `gradient-0.pt`, `gradient-1.pt`, …

    Args:
        folder: where.
        still: let no weight move.
    """

    def __init__(self, folder: Path, still: bool = False) -> None:
        self.folder, self.still = folder, still

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        """Of the global batch: all its parts are added up, and the processes have averaged theirs."""
        if trainer.is_global_zero:
            gradient = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            torch.save(gradient, self.folder / f"gradient-{trainer.global_step}.pt")
        for group in optimizer.param_groups if self.still else ():
            group["lr"] = 0.0 * group["lr"]


class AloneInTheBatch(Callback):
    """Takes away what makes an image's output depend on its process: statistics of the batch, and dropout.

    Batch norm becomes the norm of the image itself, under the same names in a checkpoint. Where a method spreads groups
    over the processes that it normalises by itself, it stays, but for the running statistics.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Of all parts that the model has by now."""
        for module in pl_module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.__class__ = _NormOfTheImage if pl_module.sync_batch_norm else _NormOfTheGroup
            elif isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0


class _NormOfTheImage(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 1, self.weight, self.bias)


class _NormOfTheGroup(_NormOfTheImage):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


def train(
    make_model: MakeModel,
    make_data: MakeData,
    folder: Path,
    steps: int,
    *,
    stop: Callback | None = None,
    every_steps: int = 1,
    interruption: Interruption | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train for `steps` steps, from the newest checkpoint in `folder` if there is one.

    Args:
        stop: what may end the run before.
        every_steps: between two checkpoints.
        interruption: takes the signals that ask the run to stop.
        options: of the Trainer.

    Returns:
        The last checkpoint.
    """
    torch.manual_seed(0)  # of the initial weights
    torch.backends.cudnn.allow_tf32 = False
    folder.mkdir(exist_ok=True, parents=True)
    data = make_data()
    model = make_model(data)
    options = {"accelerator": "cpu", "devices": 1, "val_check_interval": 4, "log_every_n_steps": 1, **options}
    trainer = Trainer(
        max_epochs=-1, max_steps=steps, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, logger=MetricsCSV(folder / "metrics.csv"),
        callbacks=[
            KeyedRandomness(data.seed), StopOnNaN(),
            Checkpoints(folder / "checkpoints", every_steps=every_steps, interruption=interruption),
            Progress(""),
            Processes(check_every=1),
            *([] if stop is None else [stop]),
        ],
        **options,
    )  # fmt: skip
    last = folder / "checkpoints" / "last.ckpt"
    with suppress(StopError):
        trainer.fit(model, datamodule=data, ckpt_path=last if last.exists() else None)
    return torch.load(last, weights_only=True)
