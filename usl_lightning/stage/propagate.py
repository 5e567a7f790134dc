"""`usl propagate`: what a few labels say of all images, written for a method of stage 3 to be guided by."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from usl_lightning.data.images.source import dataset_id
from usl_lightning.stage.fit_at_once import evidence_of
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.outcome import finish
from usl_lightning.stage.parser import StageCLI

FILE = "priors.npz"


def propagate(
    cli: StageCLI, trainer: Trainer, checkpoint: Path | None, begin: Callable[[], None], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the verb; returns how good the prior is, as far as that is known.

    Beside the prior the labels are written anew, in an index that names it as `soft`.
    """
    model, data = cli.model, cli.datamodule
    data.trainer = trainer
    data.warn_of_missing_classes("their prior is zero")
    features = evidence_of(trainer, model, data)
    with torch.inference_mode(False), torch.no_grad():
        prior, figures = model.spread(features.clone().to(trainer.strategy.root_device), data)
    begin()
    if not trainer.is_global_zero:
        return {}
    folder = StageFolder(cli.stage.run_dir)
    folder.files.mkdir(exist_ok=True)
    model.write(folder.files / FILE, prior, data)
    soft = {"file": f"{folder.files.name}/{FILE}", "source": "propagation"}
    known = data.index.dataset or dataset_id(data.train_source)  # a mere list does not say
    replace(data.index, dataset=known, soft=soft).write(folder.labels)
    metrics = {"labels": len(data.index.for_training()[0]), **figures}
    finish(cli, trainer, metrics)
    return metrics
