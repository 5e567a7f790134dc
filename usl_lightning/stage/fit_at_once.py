"""`usl fit` of a method that takes no steps: features of all images, what is learned from them, and how good it is."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning import Trainer

from usl_lightning.data.sampling import StepLoader
from usl_lightning.engine.checkpoint_files import save_learned
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.outcome import finish
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.test import judge, measure


def evidence_of(trainer: Trainer, model: Any, data: Any) -> torch.Tensor:
    """Features [n, d] of all images, computed on all devices or read, on every process."""
    if not model.needs_network:
        evidence: torch.Tensor = model.evidence(data)
        return evidence
    # Lightning sets up processes and devices; the one "batch" is the data set as a whole.
    found: Any = trainer.predict(model.as_pass(), StepLoader(lambda _: data, stop=1))
    evidence = found[0]
    return evidence


def fit_at_once(
    cli: StageCLI, trainer: Trainer, begin: Callable[[], None], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the verb; returns the metrics. A run that was killed begins again, with the features it has kept.

    Args:
        cli: the stage, built.
        trainer: tells on which devices.
        begin: called when whatever is refused is refused.
        identity: what makes the stage what it is.
    """
    model, data = cli.model, cli.datamodule
    data.trainer = trainer
    data.warn_of_missing_classes()
    features = evidence_of(trainer, model, data)
    with torch.inference_mode(False), torch.no_grad():
        model.learn(features.clone().to(trainer.strategy.root_device), data)
    begin()
    save_learned(trainer, model, cli.stage.run_dir / "checkpoints", identity)
    if data.has_test and model.needs_network:
        metrics = measure(cli, trainer)
    else:
        metrics = judge(cli, trainer, {}, StageFolder(cli.stage.run_dir).last_checkpoint)
    finish(cli, trainer, metrics)
    return metrics
