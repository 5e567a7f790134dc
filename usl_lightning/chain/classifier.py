"""A run's classifier in Python: `from usl_lightning import Classifier`."""

from pathlib import Path
from typing import Self

from usl_lightning.base.typed import home
from usl_lightning.chain.naming import spelled_out
from usl_lightning.stage.classifier import LoadedClassifier


class Classifier(LoadedClassifier):
    """The classifier that a run has trained; `load` makes one."""

    @classmethod
    def load(cls, run: str | Path) -> Self:
        """Load the classifier of a run, as `usl predict RUN` finds it.

        Args:
            run: `runs/NAME`, or `runs/NAME/STAGE`; or a checkpoint of such a stage, in its folder `checkpoints`.

        Raises:
            UslError: there is none.
        """
        path = home(str(run))
        if path.is_file():
            return cls.of(spelled_out("predict", [str(path.absolute().parent.parent), f"--ckpt_path={path}"]))
        return cls.of(spelled_out("predict", [str(path)]))
