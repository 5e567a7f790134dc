"""The end of a stage: what it hands on, its result, and a line that says so."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer

from usl_lightning.base.files import write_json
from usl_lightning.engine.wandb_run import finish_wandb
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.parser import StageCLI


def finish(cli: StageCLI, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
    """Write what the stage leaves and print its metrics, on the main process."""
    if not trainer.is_global_zero:
        return
    folder = StageFolder(cli.stage.run_dir)
    folder.files.mkdir(exist_ok=True)
    cli.model.write_outputs(folder.files)
    with suppress(OSError):
        folder.files.rmdir()  # most stages leave none
    write_json(folder.result, metrics)
    shown = ", ".join(text for name, value in metrics.items() if (text := _shown(name, value)))
    if cli.wandb is not None:
        labels = folder.labels if cli.stage.command == "select" else getattr(cli.datamodule, "labels", None)
        finish_wandb(cli.wandb, metrics, labels and Path(labels))
    print(f"{cli.stage.run_dir}: done{': ' + shown if shown else ''}", flush=True)


def _shown(name: str, value: Any) -> str:
    """A figure, or an interval; nothing of other lists."""
    if name.endswith("_interval"):
        return f"{name} {value[0]:.4f}-{value[1]:.4f}"
    if isinstance(value, list):
        return ""
    return f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
