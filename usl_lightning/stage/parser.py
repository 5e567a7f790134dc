"""LightningCLI for one stage: from a configuration to its data, its model and its trainer."""

import re
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger

from usl_lightning.base.documents import is_nothing
from usl_lightning.base.errors import UslError
from usl_lightning.base.interrupt import Interruption
from usl_lightning.base.problems import kind_at
from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.modules import ImageData
from usl_lightning.engine.checkpoint_files import AtomicCheckpointIO
from usl_lightning.engine.checkpoints import Checkpoints
from usl_lightning.engine.guests import guest
from usl_lightning.engine.logs import MetricsCSV, Pace, Progress
from usl_lightning.engine.processes import Processes, set_timeout, syncs_batch_norm
from usl_lightning.engine.trainer import (
    KeyedRandomness,
    StopOnNaN,
    Trainer,
    check_averages,
    check_precision,
    cluster_environment,
    watch_children,
)
from usl_lightning.engine.wandb_run import wandb_logger
from usl_lightning.stage.complaints import check_keys, explain, naming_the_cause
from usl_lightning.stage.identity import flatten
from usl_lightning.stage.words import RESULTS, StageCommand

TRAINER_DEFAULTS = {
    "max_epochs": -1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "log_every_n_steps": 50, "sync_batchnorm": True,
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
        super().__init__(
            trainer_class=Trainer,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            args=shielded(stage.tree()),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What one part of the configuration takes from another, and when to save."""
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data", "model.init_args.image", compute_fn=self.image, apply_on="instantiate")
        parser.add_argument("--compile", type=bool, default=False, help="torch.compile the network for training")
        parser.add_argument(
            "--activation_checkpointing", type=bool, default=False,
            help="compute activations again in the backward pass: less memory, a third more time",
        )  # fmt: skip
        parser.add_argument("--checkpoint.every_minutes", type=float, default=5.0, help="time between checkpoints")
        parser.add_argument("--checkpoint.every_steps", type=int | None, default=None, help="steps, instead")
        parser.add_argument("--processes.timeout_minutes", type=float, default=10.0, help="wait for one that hangs")
        parser.add_argument("--processes.check_every", type=int | None, default=None, help="steps; compare all state")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Take the composed configuration; a mistake becomes one line that names the key, its file and a valid name."""
        try:
            self.config = parser.parse_object(args)
        except ArgumentError as error:
            raise UslError(explain(str(error), self.stage, parser.get_defaults(skip_validation=True).keys())) from error

    def instantiate_classes(self) -> None:
        """Build the data and the model, unless only the configuration is wanted."""
        if self._build:
            with naming_the_cause(self.stage):
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
        try:
            text = self.parser.dump(self.config, skip_none=False, skip_link_targets=True, format="yaml")
        except ValueError as error:  # an object of a callback, say
            given = re.search("Given value: (.*)", str(error))
            raise UslError(f"cannot be written to config.yaml: {given[1] if given else error}; leave it out") from error
        config: dict[str, Any] = yaml.safe_load(text)
        config.pop("config", None)
        config = _with_texts(config, self.config.as_dict())
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
        own["logger"] = [*loggers, *map(guest, _listed(own.get("logger")))] or False
        own["callbacks"] = [*_listed(own.get("callbacks")), *callbacks]
        own["plugins"] = [*_listed(own.get("plugins")), AtomicCheckpointIO()]
        environment = cluster_environment()
        if environment is not None:
            own["plugins"].append(environment)
        check_precision(own["precision"], own["accelerator"])
        check_averages(self.model, own["precision"])
        own["sync_batchnorm"] = syncs_batch_norm(self.model, own["sync_batchnorm"], own["accelerator"])
        try:
            trainer = Trainer(**own)
            if environment is not None and environment.world_size() > 1:
                environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        except (
            MisconfigurationException,
            ImportError,
            TypeError,
            ValueError,
            OverflowError,
        ) as error:  # say, no such device
            raise UslError(f"trainer: {' '.join(str(error).split())}") from error
        set_timeout(trainer.strategy, self.config.processes.timeout_minutes)
        watch_children(trainer.strategy)
        return trainer


def shielded(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with a `./` before each text that the parser would take for null, where one may be: all are paths."""

    def shield(value: Any, path: list[str]) -> Any:
        if isinstance(value, dict):
            return {key: shield(item, path if key == "init_args" else [*path, key]) for key, item in value.items()}
        kind = kind_at(tree, path)
        return f"./{value}" if kind.text and kind.optional and isinstance(value, str) and is_nothing(value) else value

    return {key: shield(value, [key]) for key, value in tree.items()}


def _with_texts(written: Any, meant: Any) -> Any:
    """What was written as YAML and read again, with the texts that were meant: of `1e3` the parser makes a number."""
    if isinstance(written, dict) and isinstance(meant, dict):
        return {key: _with_texts(value, meant.get(key)) for key, value in written.items()}
    if isinstance(written, list) and isinstance(meant, list):
        return [_with_texts(*pair) for pair in zip(written, meant, strict=True)]
    return str(meant) if isinstance(meant, str) else written


def _listed(given: Any) -> list[Any]:
    """What is given to the Trainer of a kind, where it takes none, one or several."""
    return [] if given in (None, False, True) else given if isinstance(given, list) else [given]
