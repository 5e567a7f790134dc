"""`usl test` and `usl validate`: how good a checkpoint is, told by the method itself."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

from usl_lightning.base.errors import UslError
from usl_lightning.evaluation.features import first_filters
from usl_lightning.pictures.grid import contact_sheet
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.next_command import next_command
from usl_lightning.stage.parser import StageCLI


def test(
    cli: StageCLI, trainer: Trainer, checkpoint: Path | None, begin: Callable[[], None], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the verb: a table, and `evaluation.json` in the stage's folder. What the stage recorded of itself stays."""
    problem = cli.model.untestable(cli.datamodule)
    if problem is not None:
        raise UslError(f"usl {cli.stage.command}: {problem}")
    return measure(cli, trainer, checkpoint, closely=True)


def measure(
    cli: StageCLI, trainer: Trainer, checkpoint: Path | None = None, *, closely: bool = False
) -> dict[str, Any]:
    """Metrics on the test images; empty if there are none, or on another than the main process.

    Args:
        cli: the stage, built.
        trainer: that runs the pass.
        checkpoint: whose weights to take; None: those that are there.
        closely: measure all there is, and show it.
    """
    model, data = cli.model, cli.datamodule
    if not (data.has_test or closely):
        return {}
    data.trainer = trainer
    trainer.test(model, model.test_batches(data), ckpt_path=checkpoint, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return judge(cli, trainer, logged, checkpoint or StageFolder(cli.stage.run_dir).last_checkpoint, closely=closely)


def judge(
    cli: StageCLI, trainer: Trainer, logged: Mapping[str, Any], tested: Path, *, closely: bool = False
) -> dict[str, Any]:
    """What the method says of itself, written to `evaluation.json`; empty on another than the main process.

    Args:
        cli: the stage, built.
        trainer: tells which process this is.
        logged: by a pass over the test images; empty if there was none.
        tested: the checkpoint.
        closely: measure all there is, and show it.
    """
    if not trainer.is_global_zero:
        return {}
    model, data = cli.model, cli.datamodule
    evaluation = model.evaluate(logged, data, closely=closely)
    if evaluation.write is not None:
        folder = StageFolder(cli.stage.run_dir)
        about = {"method": type(model).__name__, "dataset": data.dataset, "checkpoint": str(tested)}
        evaluation.write(folder.evaluation, about)
        if closely:
            print(evaluation.table)
            if "predict" in model.verbs:
                print(f"{folder.evaluation}\nnext: usl predict {shlex.quote(str(cli.stage.run_dir))} FOLDER")
            else:
                _draw_filters(model, folder)
                print(f"{folder.evaluation}\n{next_command(cli.stage, model.verbs)}")
    return evaluation.metrics


def _draw_filters(model: Any, folder: StageFolder) -> None:
    """The first layer of a network that learned features, where it can be seen."""
    filters = first_filters(model.encoder)
    if filters is not None:
        contact_sheet(filters, folder.filters, columns=16)
        print(f"{folder.filters}: the {len(filters)} filters of the first layer")
