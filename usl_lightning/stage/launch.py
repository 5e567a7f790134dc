"""Runs one stage in this process and keeps its folder's record; imports what is heavy only then."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import noting
from usl_lightning.base.interrupt import Interruption
from usl_lightning.base.machine import is_main_process
from usl_lightning.stage.answers import KEY
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.possible import check_machine, check_networks
from usl_lightning.stage.words import RESULTS, StageCommand


def run_stage(stage: StageCommand) -> None:
    """Run a stage in this process and keep its folder's record.

    SIGUSR1, which SLURM can send ahead of a time limit, saves and puts the job back into the queue.

    Raises:
        UslError: anything the user can mend, before anything is written where possible.
        KeyboardInterrupt: the run was told to stop.
    """
    with noting():
        stage.check()
        check_parameters(stage)
        check_networks(stage.flat())
        check_machine(stage.flat())
        interruption = Interruption()
        try:
            with interruption:  # a signal may be waiting already
                _run(stage, interruption)
        except KeyboardInterrupt:
            if is_main_process():
                interruption.requeue()
            raise


def _run(stage: StageCommand, interruption: Interruption) -> None:
    identity = stage.noted_identity() if stage.command in RESULTS else None
    if identity is None or not is_main_process():
        from usl_lightning.stage.runner import run

        run(stage, identity, interruption)
        return
    folder = StageFolder(stage.run_dir)
    with folder.locked():
        fields = folder.as_recorded(identity.fields)
        _check_folder(stage, folder, fields)
        from usl_lightning.stage.runner import run

        start = time.monotonic()
        try:
            metrics = run(stage, identity, interruption, on_ready=lambda: folder.begin(fields, identity.flat.get(KEY)))
        except BaseException:
            with suppress(UslError):
                folder.pause(time.monotonic() - start)
            raise
        folder.finish(fields, time.monotonic() - start, metrics)


def _check_folder(stage: StageCommand, folder: StageFolder, identity: Mapping[str, Any]) -> None:
    """A run is continued on request only, and only if it is the same run."""
    record = folder.record()
    if record is None:
        if stage.ckpt_path != "last":
            folder.check_foreign("choose another --run_dir, or move it elsewhere")
        return
    if stage.ckpt_path is None:
        if record["status"] == "complete" or folder.has_checkpoint:
            state = "a finished run" if record["status"] == "complete" else "an interrupted run"
            raise UslError(
                f"{folder.path}: holds {state}; continue it with --ckpt_path last, or choose another --run_dir"
            )
        return
    changes = [line for line in folder.changes(identity, stage.flat().get(KEY)) if not line.startswith("version ")]
    if stage.extend:
        changes = [line for line in changes if not line.startswith("trainer.max_steps ")]
    if changes:
        raise UslError(
            f"{folder.path}: holds another run, continue that or choose another --run_dir: {'; '.join(changes)}"
        )
