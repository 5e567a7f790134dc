"""What every stage-3 method shares: a classifier, its moving average, and how they are tested."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.distributed import gather, mean_over_processes
from usl_lightning.errors import UslError
from usl_lightning.models.ema import EMA
from usl_lightning.models.encoder import ENTRY, Encoder, encoder_entry, init_encoder
from usl_lightning.models.heads import Classifier
from usl_lightning.optim import Optimization


class SemiSupervisedModule(LightningModule):
    """Base of the methods that train a classifier from few labels and many images.

    A method writes its `training_step`; what is evaluated and handed on is the moving average `ema`.

    Args:
        image: channels, size, statistics and classes of the images.
        backbone: name of the network.
        pretrained: start from published weights of the backbone.
        optimizer: how the weights are updated.
        ema_decay: of the moving average of the weights, in [0, 1).
        init_from: checkpoint of an earlier stage whose encoder to start from.

    Raises:
        UslError: fewer than two classes.
    """

    confusion: Tensor

    def __init__(
        self,
        image: ImageSpec,
        backbone: str,
        pretrained: bool,
        optimizer: Optimization,
        *,
        ema_decay: float,
        init_from: str | None,
    ) -> None:
        super().__init__()
        if image.num_classes < 2:
            raise UslError(f"data.labels: {image.num_classes} classes are known; a classifier needs at least 2")
        self.model = Classifier(Encoder(backbone, image, pretrained=pretrained), image.num_classes)
        self.ema = EMA(self.model, ema_decay)
        self.optimization = optimizer
        self.init_from = init_from
        shape = (2, image.num_classes, image.num_classes)
        self.register_buffer("confusion", torch.zeros(shape, dtype=torch.long), persistent=False)

    def setup(self, stage: str) -> None:
        """Start from an earlier encoder; a checkpoint being resumed is loaded after this and wins."""
        if stage == "fit" and self.init_from is not None:
            init_encoder(self.model.encoder, self.init_from)
            self.ema.copy_from(self.model)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over `trainer.max_steps`."""
        batch_size: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        batch_size *= self.trainer.accumulate_grad_batches
        return self.optimization.build(self, max_steps=self.trainer.max_steps, batch_size=batch_size)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of the optimizer, then of the moving average: both are in any checkpoint made after it."""
        optimizer.step(closure=optimizer_closure)
        self.ema.update(self.model)

    def logits(self, labelled: Tensor, weak: Tensor, *strong: Tensor, joint: bool = True) -> list[Tensor]:
        """Logits [b, classes] of each group of views, float32.

        Args:
            labelled, weak, strong: views [b, c, h, w]; the groups may differ in b.
            joint: one forward pass for all. False: the weak ones in a pass of their own, without gradient.
        """
        views = [labelled, weak, *strong] if joint else [labelled, *strong]
        split = list(self.model(torch.cat(views)).float().split([len(view) for view in views]))
        if not joint:
            with torch.no_grad():
                split.insert(1, self.model(weak).float())
        return split

    def log_training(self, **values: Tensor) -> None:
        """Log scalars of a training step, averaged over the processes."""
        self.log_dict(mean_over_processes(**values), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how to rebuild the encoders without this class."""
        checkpoint[ENTRY] = encoder_entry(self.model.encoder, online="model.encoder.", ema="ema.module.encoder.")

    def write_outputs(self, folder: Path) -> None:
        """Write files that other stages can take from this one by their names without suffix; none here."""

    # Evaluation: the moving average first, the online network beside it.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count true and predicted classes of both networks, over the images that have a label."""
        classes, known = self.confusion.shape[-1], batch.labels >= 0
        for row, network in enumerate((self.ema.module, self.model)):
            predicted = network(batch.images).argmax(1)
            cells = (batch.labels * classes + predicted)[known]
            self.confusion[row] += torch.bincount(cells, minlength=classes**2).view(classes, classes)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies, fractions of 1."""
        confusion = gather(self.confusion[None]).sum(0)
        self.confusion.zero_()
        correct, total = confusion.diagonal(dim1=1, dim2=2).sum(1), confusion.sum((1, 2))
        if not bool(total.all()):
            return  # no test image has a label
        ema, online = (correct / total).unbind()
        self.log("test_accuracy", ema, prog_bar=True, rank_zero_only=True)
        self.log("test_accuracy_online", online, rank_zero_only=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities of the moving average, [b, classes]."""
        return self.ema.module(batch.images).float().softmax(1)
