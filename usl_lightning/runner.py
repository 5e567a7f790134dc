"""Runs one stage: what `stage.py` decided, with everything heavy imported."""

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import LambdaCallback

from usl_lightning.allocator import keep_freed_memory
from usl_lightning.checkpoint_files import check_resume, newest_whole
from usl_lightning.children import Launcher
from usl_lightning.errors import UslError
from usl_lightning.evaluation.classification import scores_table, write_scores
from usl_lightning.evaluation.features import evaluate_features
from usl_lightning.files import write_json, write_text
from usl_lightning.identity import content_fields, flatten, identity_fields
from usl_lightning.interrupt import Interruption
from usl_lightning.logs import show_messages
from usl_lightning.models.encoder import compile_encoders, recompute_encoders, stored_image
from usl_lightning.plan import Plan
from usl_lightning.predict import images_to_predict, predict, predictions_csv
from usl_lightning.pretrain.base import PretrainModule
from usl_lightning.processes import lost_peer, says_lost
from usl_lightning.selection.base import Selector
from usl_lightning.selection.outcome import chosen_index, chosen_quality, draw_chosen, print_quality
from usl_lightning.selection.overview import NEIGHBORS, make_overview
from usl_lightning.semisup.base import SemiSupervisedModule
from usl_lightning.stage import RESULTS, StageCommand, StageFolder
from usl_lightning.stage_cli import StageCLI
from usl_lightning.trainer import Trainer
from usl_lightning.waiting import images_to_label
from usl_lightning.wandb_run import finish_wandb, keep_run_id, log_selection


def run(stage: StageCommand, interruption: Interruption, on_ready: Callable[[], None] | None = None) -> dict[str, Any]:
    """Run a stage; returns its metrics.

    Args:
        stage: what was typed.
        interruption: of this process; training defers it until a step is saved.
        on_ready: called when the first step is about to be taken, or the images are chosen: whatever is refused
            is refused by then. No file is written before.

    Raises:
        UslError: anything the user can mend.
        KeyboardInterrupt: the run got SIGINT, SIGTERM or SIGUSR1.
    """
    show_messages()
    cli = StageCLI(stage, build=stage.command in RESULTS)
    config = cli.resolved()
    identity = (content_fields if stage.command == "fit" else identity_fields)(flatten(config))
    checkpoint = stage.checkpoint() if stage.ckpt_path else None
    if stage.ckpt_path == "last" and stage.command == "fit":
        checkpoint = newest_whole(stage.run_dir / "checkpoints")
    if checkpoint is not None:
        check_resume(checkpoint, identity, extend=stage.extend, training=stage.command == "fit")
    if checkpoint is not None and stage.command not in RESULTS:
        cli.build(stored_image(checkpoint))
        _check_classes(cli, checkpoint)
    _check_command(cli)
    trainer = cli.build_trainer(identity, config, interruption)

    def begin() -> None:
        """Whatever is refused is refused by now."""
        if on_ready is not None:
            on_ready()
        if trainer.is_global_zero:
            write_text(stage.run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False))
            if cli.wandb is not None:
                keep_run_id(cli.wandb, stage.run_dir)

    try:
        if stage.command == "fit":
            return _fit(cli, trainer, checkpoint, begin)
        if stage.command == "select":
            return _select(cli, trainer, begin)
        assert checkpoint is not None  # the others look at one, and are refused without
        return _LOOKS[stage.command](cli, trainer, checkpoint)
    except RuntimeError as error:
        if trainer.world_size == 1 or not says_lost(error):
            raise
        if interruption.signum is not None or _others_were_stopped(trainer):
            raise KeyboardInterrupt from error
        raise lost_peer(error, trainer.global_rank, cli.config.processes.timeout_minutes, _remedy(stage)) from error
    except SystemExit as stop:  # Lightning's answer to SIGINT (code 1) and to SIGTERM (code 0: success)
        raise KeyboardInterrupt from stop
    finally:
        if isinstance(trainer.strategy.launcher, Launcher):
            trainer.strategy.launcher.finish(failed=sys.exc_info()[1] is not None)


def _others_were_stopped(trainer: Trainer) -> bool:
    launcher = trainer.strategy.launcher
    return isinstance(launcher, Launcher) and launcher.was_stopped()


def _remedy(stage: StageCommand) -> str:
    kept = stage.command == "fit" and StageFolder(stage.run_dir).has_checkpoint
    return "--ckpt_path last continues from the last checkpoint" if kept else "start it again"


def _check_command(cli: StageCLI) -> None:
    selects = isinstance(cli.model, Selector)
    if selects != (cli.stage.command == "select"):
        raise UslError(
            f"usl {cli.stage.command}: {cli.stage.configs[-1]} is for usl {'select' if selects else 'fit'}: "
            f"its model is {type(cli.model).__name__}"
        )


def _check_classes(cli: StageCLI, checkpoint: Path) -> None:
    """A classifier is not looked at with other classes than it knows; features have none."""
    if not isinstance(cli.model, SemiSupervisedModule) or "folder" in cli.stage.options:
        return
    data, known = cli.datamodule, cli.model.image.classes
    found = data.classes if getattr(data, "labels", None) else data.train_source.classes
    if found and found != known:
        there, here = (f"{len(names)} classes ({', '.join(names[:3])}, …)" for names in (known, found))
        raise UslError(f"{checkpoint}: tells {there} apart, the data has {here}; use the data it was trained on")


def _fit(cli: StageCLI, trainer: Trainer, checkpoint: Path | None, begin: Callable[[], None]) -> dict[str, Any]:
    _check_fit(cli, trainer)
    if cli.config.compile:
        compile_encoders(cli.model)
    if cli.config.activation_checkpointing:
        recompute_encoders(cli.model)
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    trainer.callbacks.insert(0, LambdaCallback(on_train_start=lambda *_: begin()))  # type: ignore[attr-defined]
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    return _finish(cli, trainer, _measure(cli, trainer))


def _check_fit(cli: StageCLI, trainer: Trainer) -> None:
    if trainer.max_steps < 1:
        raise UslError("trainer.max_steps: the number of training steps is missing; expected 1 or more")
    every, part = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(every, int) and every % part:
        valid = [size for size in (every - every % part, every - every % part + part) if size]
        raise UslError(
            f"trainer.val_check_interval: {every} batches end amid a step of {part} (trainer.accumulate_grad_batches); "
            f"use {' or '.join(map(str, valid))}"
        )
    if cli.config.compile and cli.config.activation_checkpointing:
        raise UslError("activation_checkpointing: a compiled network decides itself what to keep; leave one out")


def _test(cli: StageCLI, trainer: Trainer, checkpoint: Path) -> dict[str, Any]:
    if isinstance(cli.model, PretrainModule):
        return _evaluate_features(cli, trainer, checkpoint)
    command, data = f"usl {cli.stage.command}", cli.datamodule
    if not data.has_test:
        raise UslError(
            f"{command}: {data.dataset} has no test split to measure on; `usl predict` classifies any images"
        )
    metrics = _measure(cli, trainer, checkpoint, show=True)
    if isinstance(cli.model, SemiSupervisedModule) and not cli.model.scores:
        raise UslError(f"{command}: no test image of {data.dataset} has a label to measure by; expected some that do")
    return metrics


def _evaluate_features(cli: StageCLI, trainer: Trainer, checkpoint: Path) -> dict[str, Any]:
    """Everything that can be told of a stage-1 checkpoint: a table, and `evaluation.json` in the stage's folder."""
    model, data = cli.model, cli.datamodule
    trainer.test(model, datamodule=data, ckpt_path=checkpoint, verbose=False)
    if not trainer.is_global_zero:
        return {}
    report = evaluate_features(
        *model.measured, knn_k=model.knn_k, knn_temperature=model.knn_temperature, seed=data.seed
    )
    path = cli.stage.run_dir / "evaluation.json"
    about = {"method": type(model).__name__, "dataset": data.dataset, "checkpoint": str(checkpoint)}
    images = {name: len(part.labels) for name, part in zip(("train", "test"), model.measured, strict=False)}
    write_json(path, {**about, "images": images, **report.as_dict()})
    print(f"{report.table()}\n{path}")
    return report.metrics


def _measure(cli: StageCLI, trainer: Trainer, checkpoint: Path | None = None, *, show: bool = False) -> dict[str, Any]:
    """Metrics on the test images; empty if the data set has none."""
    if not cli.datamodule.has_test:
        return {}
    trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False)
    metrics: dict[str, Any] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if "knn_accuracy" in metrics:
        metrics["knn_k"] = cli.model.knn_k
    if isinstance(cli.model, SemiSupervisedModule) and cli.model.scores and trainer.is_global_zero:
        _tell_scores(cli, checkpoint or StageFolder(cli.stage.run_dir).last_checkpoint, show=show)
    return metrics


def _tell_scores(cli: StageCLI, checkpoint: Path, *, show: bool) -> None:
    """Everything the test images say of a classifier: `evaluation.json` in the stage's folder, and a table."""
    model, classes = cli.model, cli.model.image.classes
    about = {"method": type(model).__name__, "dataset": cli.datamodule.dataset, "checkpoint": str(checkpoint)}
    path = cli.stage.run_dir / "evaluation.json"
    write_scores(path, about, model.scores, classes)
    if show:
        print(f"{scores_table({'EMA': model.scores['ema'], 'online': model.scores['online']}, classes)}\n\n{path}")


def _predict(cli: StageCLI, trainer: Trainer, checkpoint: Path) -> dict[str, Any]:
    """Write a CSV: file or number of the image, class and its probability."""
    if not isinstance(cli.model, SemiSupervisedModule):
        raise UslError(f"usl predict: {type(cli.model).__name__} learns features, not classes; expected a classifier")
    data, options, image = cli.datamodule, cli.stage.options, cli.model.image
    source = images_to_predict(data, image, options, cli.config.data.init_args.on_error)
    labels, probabilities = predict(
        trainer, cli.model, source, batch_size=data.eval_batch_size, checkpoint=checkpoint, workers=data.workers
    )
    if trainer.is_global_zero:
        what = options.get("split") or (Path(options["folder"]).resolve().name if "folder" in options else "")
        path = Path(options.get("out", cli.stage.run_dir / f"predictions{'_' if what else ''}{what}.csv"))
        write_text(path, predictions_csv(source, labels, probabilities, image.classes))
        print(f"{len(labels)} predictions: {path}")
    return {}


def _select(cli: StageCLI, trainer: Trainer, begin: Callable[[], None]) -> dict[str, Any]:
    """Choose, look up the labels of the chosen alone, and write the label index; then tell how good it is."""
    model, data = cli.model, cli.datamodule
    if model.budget > len(data.train_source):
        raise UslError(f"model.budget: {model.budget} images cannot be picked from {len(data.train_source)}")
    selection = trainer.select(model, data)
    begin()
    if not trainer.is_global_zero:
        return {}
    source, folder = data.train_source, StageFolder(cli.stage.run_dir)
    parameters = {
        key.removeprefix("model."): value
        for key, value in content_fields(flatten(cli.resolved())).items()
        if key.startswith("model.") and key != "model.class_path"
    }
    parameters |= model.settled(len(source))
    method = {"name": type(model).__name__.lower(), "seed": data.seed, "params": parameters}
    index = chosen_index(source, selection.indices, method, selection.kept, model.followers(selection.indices))
    metrics = {"budget": len(index), **chosen_quality(index, source, selection.evidence)}
    index.write(folder.labels)
    draw_chosen(index, source, folder.picture)
    if cli.wandb is not None:
        log_selection(cli.wandb, index, source, folder.picture)
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
    _finish(cli, trainer, metrics)
    if index.unlabelled and Plan.read(folder.path.parent) is None:  # a chain says so itself, at its end
        print(f"{images_to_label(index)}: usl label {shlex.quote(str(folder.labels))}", flush=True)
    return metrics


def _finish(cli: StageCLI, trainer: Trainer, metrics: dict[str, Any]) -> dict[str, Any]:
    if trainer.is_global_zero:
        folder = StageFolder(cli.stage.run_dir)
        folder.files.mkdir(exist_ok=True)
        cli.model.write_outputs(folder.files)
        with suppress(OSError):
            folder.files.rmdir()  # most stages leave none
        write_json(folder.result, metrics)
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, list)}
        shown = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
        if cli.wandb is not None:
            labels = folder.labels if cli.stage.command == "select" else getattr(cli.datamodule, "labels", None)
            finish_wandb(cli.wandb, metrics, labels and Path(labels))
        print(f"{cli.stage.run_dir}: done{': ' + shown if shown else ''}", flush=True)
    return metrics


_LOOKS: dict[str, Callable[[StageCLI, Trainer, Path], dict[str, Any]]] = {
    "validate": _test,
    "test": _test,
    "predict": _predict,
}
"""Commands that look at a checkpoint; what the stage recorded of itself stays, beside what they write."""
