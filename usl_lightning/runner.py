"""Runs one stage through LightningCLI: what `stage.py` decided, with everything heavy imported."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from usl_lightning.allocator import keep_freed_memory
from usl_lightning.checkpoints import AtomicCheckpointIO, Checkpoints, StopOnNaN, check_resume, newest_whole
from usl_lightning.complaints import check_keys, explain, naming_missing_packages
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.modules import ImageData
from usl_lightning.errors import UslError
from usl_lightning.evaluation.classification import scores_table, write_scores
from usl_lightning.evaluation.features import evaluate_features
from usl_lightning.files import write_json, write_text
from usl_lightning.identity import content_fields, flatten, identity_fields
from usl_lightning.interrupt import Interruption
from usl_lightning.logs import MetricsCSV, Pace, Progress, show_messages
from usl_lightning.models.encoder import compile_encoders, stored_image
from usl_lightning.precision import check_averages, check_precision
from usl_lightning.predict import images_to_predict, predict, predictions_csv
from usl_lightning.pretrain.base import PretrainModule
from usl_lightning.processes import Processes, lost_peer, set_timeout
from usl_lightning.selection.base import Selector
from usl_lightning.selection.outcome import chosen_index, chosen_quality, draw_chosen, print_quality
from usl_lightning.selection.overview import NEIGHBORS, make_overview
from usl_lightning.semisup.base import SemiSupervisedModule
from usl_lightning.stage import RESULTS, StageCommand, StageFolder
from usl_lightning.trainer import KeyedRandomness, Trainer
from usl_lightning.wandb_run import finish_wandb, keep_run_id, log_selection, wandb_logger

TRAINER_DEFAULTS = {
    "max_epochs": -1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "log_every_n_steps": 50,
}  # fmt: skip


class StageCLI(LightningCLI):
    """LightningCLI for one sub-command: parses and instantiates; `run` does the rest.

    Args:
        stage: what was typed.
        build: False only parses; `build` then makes the data and the model.
    """

    def __init__(self, stage: StageCommand, build: bool = True) -> None:
        self.stage, self._build = stage, build
        self._image: ImageSpec | None = None
        self.wandb: WandbLogger | None = None
        arguments = [*(f"--config={path}" for path in stage.configs), *stage.override_arguments()]
        super().__init__(
            trainer_class=Trainer,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            args=arguments,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What one part of the configuration takes from another, and when to save."""
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data", "model.init_args.image", compute_fn=self.image, apply_on="instantiate")
        parser.add_argument("--compile", type=bool, default=False, help="torch.compile the network for training")
        parser.add_argument("--checkpoint.every_minutes", type=float, default=5.0, help="time between checkpoints")
        parser.add_argument("--checkpoint.every_steps", type=int | None, default=None, help="steps, instead")
        parser.add_argument("--processes.timeout_minutes", type=float, default=10.0, help="wait for one that hangs")
        parser.add_argument("--processes.check_every", type=int | None, default=None, help="steps; compare all state")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake becomes one line that names the key, its file and the nearest valid name."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UslError(explain(str(error), self.stage, parser.get_defaults(skip_validation=True).keys())) from error

    def instantiate_classes(self) -> None:
        """Build the data and the model, unless only the configuration is wanted."""
        if self._build:
            with naming_missing_packages(self.stage):
                super().instantiate_classes()

    def build(self, image: ImageSpec) -> None:
        """Build the data, and a model for the images of a checkpoint: the data may be others, or have no labels."""
        self._image = image
        super().instantiate_classes()

    def image(self, data: ImageData) -> ImageSpec:
        """What the model knows of its images."""
        return self._image or data.spec

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer comes last, when the run is known to be possible."""
        return None  # type: ignore[return-value]

    def resolved(self) -> dict[str, Any]:
        """The configuration with every default filled in."""
        config: dict[str, Any] = yaml.safe_load(
            self.parser.dump(self.config, skip_none=False, skip_link_targets=True, format="yaml")
        )
        config.pop("config", None)
        check_keys(self.stage, flatten(config))
        return config

    def build_trainer(self, identity: dict[str, Any], config: dict[str, Any], interruption: Interruption) -> Trainer:
        """The trainer with our checkpoints, logs and progress."""
        stage, settings = self.stage, self.config.checkpoint
        every = (settings.every_minutes, settings.every_steps)
        callbacks = [
            KeyedRandomness(self.datamodule.seed),
            StopOnNaN(),
            Checkpoints(stage.run_dir / "checkpoints", *every, identity, interruption),
            Processes(self.config.processes.check_every),
            Progress(f"{stage.run_dir.name}"),
            Pace(stage.run_dir / "speed.csv"),
        ]
        loggers: list[Logger] = [MetricsCSV(stage.run_dir / "metrics.csv")] if stage.command == "fit" else []
        if stage.wandb and stage.command in RESULTS:
            self.wandb = wandb_logger(stage.wandb, stage.run_dir, flatten(config))
            loggers += [self.wandb] if stage.command == "fit" else []
        own = dict(self.config_init.trainer)
        if own.get("logger") not in (None, False, True):
            loggers += own["logger"] if isinstance(own["logger"], list) else [own["logger"]]
        own["logger"] = loggers or False
        own["plugins"] = [*(own.get("plugins") or []), AtomicCheckpointIO()]
        if SLURMEnvironment.detect():  # Lightning's requeueing saves elsewhere, amid a step
            own["plugins"].append(SLURMEnvironment(auto_requeue=False))
        on_cuda = torch.cuda.is_available() and own.get("accelerator") in ("auto", "cuda", "gpu")
        check_precision(own["precision"], own["accelerator"])
        check_averages(self.model, own["precision"])
        by_default = on_cuda and getattr(self.model, "sync_batch_norm", True)  # there is none on the CPU
        own["sync_batchnorm"] = own["sync_batchnorm"] or by_default
        try:
            trainer = self._instantiate_trainer(own, callbacks)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:  # say, no such device
            raise UslError(f"trainer: {' '.join(str(error).split())}") from error
        set_timeout(trainer.strategy, self.config.processes.timeout_minutes)
        return trainer  # type: ignore[return-value]


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
        lost = lost_peer(error, trainer, cli.config.processes.timeout_minutes)
        if lost is None:
            raise
        raise lost from error
    except SystemExit as stop:  # Lightning's answer to SIGINT (code 1) and to SIGTERM (code 0: success)
        raise KeyboardInterrupt from stop


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
    if trainer.max_steps < 1:
        raise UslError("trainer.max_steps: the number of training steps is missing; expected 1 or more")
    if cli.config.compile:
        compile_encoders(cli.model)
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
    trainer.callbacks.insert(0, LambdaCallback(on_train_start=lambda *_: begin()))  # type: ignore[attr-defined]
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    return _finish(cli, trainer, _measure(cli, trainer))


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
    index = chosen_index(source, selection.indices, method, selection.kept)
    metrics = {"budget": len(index), **chosen_quality(index, source, selection.evidence)}
    index.write(folder.labels)
    draw_chosen(index, source, folder.picture)
    if cli.wandb is not None:
        log_selection(cli.wandb, index, source, folder.picture)
    overview = make_overview(selection.evidence, selection.indices, k=parameters.get("k") or NEIGHBORS, seed=data.seed)
    if overview is not None:
        overview.write(folder.overview)
    print_quality(metrics)
    return _finish(cli, trainer, metrics)


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
