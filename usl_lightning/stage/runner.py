"""Runs one stage: what `stage.py` decided, with everything heavy imported."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException

from usl_lightning.base.documents import document_text
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.base.interrupt import Interruption
from usl_lightning.engine.logs import show_messages
from usl_lightning.engine.processes import lost_peer, says_lost
from usl_lightning.engine.trainer import Launcher, Trainer
from usl_lightning.engine.wandb_run import keep_run_id
from usl_lightning.models.encoder import stored_image
from usl_lightning.stage.fit import fit
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.identity import StageIdentity, flatten, identity_fields
from usl_lightning.stage.parser import StageCLI
from usl_lightning.stage.predict import predict
from usl_lightning.stage.propagate import propagate
from usl_lightning.stage.resume import check_resume, newest_whole
from usl_lightning.stage.select import select
from usl_lightning.stage.test import test
from usl_lightning.stage.words import RESULTS, StageCommand

Verb = Callable[[StageCLI, Trainer, Path | None, Callable[[], None], dict[str, Any]], dict[str, Any]]
VERBS: dict[str, Verb] = {
    "fit": fit, "select": select, "propagate": propagate, "validate": test, "test": test, "predict": predict,
}  # fmt: skip
"""What a stage can do; each takes the stage, its trainer, a checkpoint, what to call before anything is written, and
the fields of its identity, defaults included."""


def run(
    stage: StageCommand,
    identity: StageIdentity | None,
    interruption: Interruption,
    on_ready: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run a stage; returns its metrics.

    Args:
        stage: what was typed.
        identity: what makes it what it is, as noted at its start; None for a look at a stage, which reads no more
            than it needs.
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
    fields = identity_fields(flatten(config)) if identity is None else identity.resolved(flatten(config))
    checkpoint = stage.checkpoint() if stage.ckpt_path else None
    if stage.ckpt_path == "last" and stage.command == "fit":
        checkpoint = newest_whole(stage.run_dir / "checkpoints")
    if checkpoint is not None:
        check_resume(checkpoint, fields, typed=stage.flat(), extend=stage.extend, training=stage.command == "fit")
    if checkpoint is not None and stage.command not in RESULTS:
        cli.build(stored_image(checkpoint))
        _check_verb(cli)
        if "folder" not in stage.options:
            cli.model.check_classes(cli.datamodule, checkpoint)
    _check_verb(cli)
    trainer = cli.build_trainer(fields, config, interruption)

    def begin() -> None:
        """Whatever is refused is refused by now."""
        if on_ready is not None:
            on_ready()
        if trainer.is_global_zero:
            write_text(stage.run_dir / "config.yaml", document_text(config))
            if cli.wandb is not None:
                keep_run_id(cli.wandb, stage.run_dir)

    try:
        return VERBS[stage.command](cli, trainer, checkpoint, begin, fields)
    except MisconfigurationException as error:  # of a callback, say
        raise UslError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise UslError(f"trainer.callbacks: {' '.join(str(error).split())}") from error
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


def _check_verb(cli: StageCLI) -> None:
    command, verbs = cli.stage.command, cli.model.verbs
    if command not in verbs:
        name, config = type(cli.model).__name__, cli.stage.configs[-1]
        raise UslError(f"usl {command}: {config} is for usl {', '.join(verbs)}: its model is {name}")
