"""`usl select`: choose, look up the labels of the chosen alone, write the label index, and tell how good it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer

from usl_lightning.base.errors import UslError
from usl_lightning.data.modules import ImageData
from usl_lightning.data.sampling import StepLoader
from usl_lightning.engine.wandb_run import log_selection
from usl_lightning.labels import LabelIndex
from usl_lightning.selection.selector import Selector
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.outcome import chosen_index, chosen_quality, draw_chosen, finish, print_quality
from usl_lightning.stage.overview import NEIGHBORS, make_overview
from usl_lightning.stage.parser import StageCLI


class Selection(NamedTuple):
    """What `choose` returns, on every process.

    Attributes:
        indices: int64 [budget] on the CPU, distinct positions in the data set: the kept ones, then in order of choice.
            What was added to the kept ones while they were labelled comes beyond the budget.
        evidence: features [n, d] that the choice was made from; for random and stratified those for the report; [n, 0]
            where no process has all of them.
        kept: the images that were to be kept, if any; the first of `indices`.
    """

    indices: torch.Tensor
    evidence: torch.Tensor
    kept: LabelIndex | None


def choose(trainer: Trainer, model: Selector, data: ImageData) -> Selection:
    """Compute the features of all images, on all devices, and choose.

    Args:
        trainer: tells on which devices.
        model: the selector.
        data: the images.
    """
    data.trainer = trainer
    kept = model.kept(data)
    if kept is not None:
        model.budget = min(model.budget + len(kept.added), len(data.train_source))
    if model.needs_network or model.sharded:
        # Lightning sets up processes and devices; the one "batch" is the data set as a whole.
        whole = StepLoader(lambda _: data, stop=1)
        evidence: torch.Tensor = trainer.predict(model, whole)[0]  # type: ignore[index,assignment]
    else:
        data.setup("predict")
        evidence = model.evidence(data)
    evidence = evidence.to(trainer.strategy.root_device)
    if kept is None:
        chosen = model.choose(evidence, data.seed)
    else:
        chosen = model.choose_beside(evidence, kept, data.seed)
    if model.sharded:
        evidence = torch.empty(len(data.train_source), 0)
    return Selection(trainer.strategy.broadcast(chosen.cpu()), evidence, kept)


def select(
    cli: StageCLI, trainer: Trainer, checkpoint: Path | None, begin: Callable[[], None], identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the verb; returns the metrics of the selection. The label index tells by what parameters it was chosen."""
    model, data = cli.model, cli.datamodule
    if model.budget > len(data.train_source):
        raise UslError(f"model.budget: {model.budget} images cannot be picked from {len(data.train_source)}")
    selection = choose(trainer, model, data)
    begin()
    if not trainer.is_global_zero:
        return {}
    source, folder = data.train_source, StageFolder(cli.stage.run_dir)
    parameters = {
        key.removeprefix("model."): value
        for key, value in identity.items()
        if key.startswith("model.") and key != "model.class_path"
    }
    parameters |= model.settled(len(source))
    method = {"name": type(model).__name__.lower(), "seed": data.seed, "params": parameters}
    if selection.kept is not None:
        method["kept"] = len(selection.kept)
    index = chosen_index(source, selection.indices, method, selection.kept, model.followers(selection.indices))
    metrics = {"budget": index.chosen, **chosen_quality(index, source, selection.evidence)}
    index.write(folder.labels)
    draw_chosen(index, source, folder.picture)
    if cli.wandb is not None:
        log_selection(cli.wandb, index, source, folder.picture)
    overview = None
    if not model.sharded:
        overview = make_overview(
            selection.evidence,
            selection.indices,
            k=parameters.get("k") or NEIGHBORS,
            seed=data.seed,
            clusters=model.clusters,
        )
    if overview is not None:
        overview.write(folder.overview)
    print_quality(metrics)
    finish(cli, trainer, metrics, index)
    return metrics
