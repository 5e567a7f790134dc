"""What all methods share: which verbs they have, how they are optimised, and what they say of themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule
from torch import nn

from usl_lightning.base.ranges import Ranged
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.modules import ImageData


@dataclass(frozen=True)
class Evaluation:
    """What a method says of itself after a pass over the test images.

    Attributes:
        metrics: name -> value, plain numbers; accuracies are fractions of 1.
        table: the same, and more, for people.
        write: writes everything there is to know, as JSON: called with the file and what was tested (plain data).
            None: there is no more than the metrics.
    """

    metrics: dict[str, Any]
    table: str = ""
    write: Callable[[Path, Mapping[str, Any]], None] | None = None


class Method(Ranged, LightningModule):
    """Thin base of all methods: what a stage may ask of any of them.

    Attributes:
        verbs: the commands that a stage of this method has: `fit`, `validate`, `test`, `predict`, `select`.
        needs: parameters that must be given to train or choose, or, with ` or ` between them, one of several.
        up_to_images: parameters, numbers or lists of them, that the number of images is the most of.
        by_steps: whether it is trained in steps, `trainer.max_steps` of them; False: at once, by `learn`.
        optimization: how the weights are updated; of methods that train in steps.
        sync_batch_norm: whether batch norm is to see the global batch where that can be had (several GPUs).
        revision: of the mathematics; whoever changes them raises it in the body of the class that changes, and a run
            begun before is not continued. It counts in all that is made of that class (`stage/identity.py`).
    """

    verbs: tuple[str, ...] = ("fit", "validate", "test")
    needs: tuple[str, ...] = ()
    up_to_images: tuple[str, ...] = ()
    by_steps = True
    optimization: Optimization
    sync_batch_norm = True
    revision: int = 1

    @property
    def constant_lr(self) -> Sequence[nn.Module]:
        """Parts whose learning rate is not scheduled."""
        return ()

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over `trainer.max_steps`."""
        batch_size: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return self.optimization.build(
            self,
            max_steps=self.trainer.max_steps,
            batch_size=batch_size * self.trainer.accumulate_grad_batches,
            constant=self.constant_lr,
            clipped=bool(self.trainer.gradient_clip_val),
        )

    def sees(self, source: ImageSource) -> ImageSource:
        """Images as this method looks at them outside of training: as they are, unless it has a size of its own."""
        return source

    def check_classes(self, data: ImageData, checkpoint: Path) -> None:
        """Refuse to look at a checkpoint of this method with data of other classes; features have none."""

    def test_batches(self, data: ImageData) -> Any:
        """What a pass over the test images goes over: the batches of the data, unless a method takes them whole."""
        return data

    def untestable(self, data: ImageData) -> str | None:
        """Why this method cannot be tested on a data set; None: it can."""
        return None

    def evaluate(self, metrics: Mapping[str, Any], data: ImageData, *, closely: bool) -> Evaluation:
        """What the pass over the test images that has just ended says; called on the main process alone.

        Args:
            metrics: what was logged.
            data: the images.
            closely: also what takes time.
        """
        return Evaluation(dict(metrics))

    def write_outputs(self, folder: Path) -> None:
        """Write files that other stages can take from this one by their names without suffix; none here."""
