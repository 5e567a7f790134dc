"""Weights & Biases as a second diary of a stage: never needed, never waited for long, complete without a network."""

import os
import re
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import WandbLogger

from usl_lightning.base.accounts import HOW, logged_in, sends_nothing, wandb_server
from usl_lightning.base.atomic import read_file
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_text
from usl_lightning.base.machine import is_main_process

if TYPE_CHECKING:
    from usl_lightning.data.images.source import ImageSource
    from usl_lightning.labels import LabelIndex

PATIENCE = 5.0
"""Seconds that anything waits for the server: its first answer, the start of a run, what is unsent at its end."""

ROWS = 200
"""Chosen images in the table: their pixels are all in memory at once."""

NAME = 128
"""Letters of an artifact's name, at most."""


class _Diary(WandbLogger):
    """Goes on offline if the server falls silent between its first answer and the start of the run."""

    @property
    def experiment(self) -> Any:
        """The run."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError:
            wandb.teardown()  # it holds on to the run's id
            _go_offline(Path(str(self.save_dir)))
            return super().experiment


def wandb_logger(mode: str, run_dir: Path, config: dict[str, Any]) -> WandbLogger:
    """A Weights & Biases logger: a chain's stages share a group, the stage is the job type, a resume goes on.

    If the server does not answer, the run is logged offline: no run fails because its diary cannot be sent. All that
    `wandb sync` will send is kept in `run_dir/wandb`.

    Args:
        mode: `online` or `offline`.
        run_dir: `runs/<run>/<stage>`; names the group, the job type and, with them, the run.
        config: everything resolved.

    Raises:
        UslError: online without being logged in.
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str((run_dir / "wandb").absolute()))  # artifacts that are not sent yet
    if mode == "offline" or sends_nothing():
        mode = os.environ["WANDB_MODE"] = "offline"
    elif not logged_in():
        raise UslError(f"--wandb: {HOW}, or use --wandb offline")
    elif is_main_process() and not _reachable():
        mode = "offline"
        _go_offline(run_dir)
    stage, group = run_dir.name, run_dir.resolve().parent.name
    logger = _Diary(
        project="usl-lightning",
        name=f"{group}/{stage}",
        group=group,
        job_type=stage,
        save_dir=str(run_dir),
        id=_run_id(run_dir),
        resume="allow",
        config=config,
        offline=mode == "offline",
        settings=wandb.Settings(init_timeout=PATIENCE, finish_timeout=PATIENCE, finish_timeout_raises=True),
    )
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # Lightning hands it on unasked, and wandb warns of it
    return logger


def keep_run_id(logger: WandbLogger, run_dir: Path) -> None:
    """Keep the run's id in the stage's folder: a resume goes on in the same run."""
    write_text(run_dir / ".wandb_id", str(logger.version))


def log_selection(logger: WandbLogger, index: "LabelIndex", source: "ImageSource", picture: Path) -> None:
    """Log the chosen images: `chosen`, the picture of all, and `selected`, a table with a row for each.

    Args:
        logger: the stage's; on the main process.
        index: the chosen images, in order of choice, the first `ROWS` of which are shown.
        source: the images they were chosen from.
        picture: the PNG that shows them.
    """
    import torch
    import wandb

    table = wandb.Table(columns=["place", "image", "index", "file", "class"])
    shown = index.indices[:ROWS]
    for place, pixels in enumerate(source.read(torch.tensor(shown))):
        label = index.labels[place]
        name = None if label is None else index.classes[label] if index.classes else str(label)
        file = None if index.files is None else index.files[place]
        table.add_data(place + 1, wandb.Image(pixels.permute(1, 2, 0).numpy()), shown[place], file, name)
    logger.experiment.log({"chosen": wandb.Image(str(picture)), "selected": table})


def finish_wandb(logger: WandbLogger, metrics: Mapping[str, Any], labels: Path | None) -> None:
    """Log what came out, with the label index as an artifact, and close the run.

    Args:
        logger: the stage's; on the main process.
        metrics: what the stage's `result.json` holds.
        labels: the label index that the stage wrote or was given; None if there is none.
    """
    import wandb

    run = logger.experiment
    run.summary.update({f"result/{name}": value for name, value in metrics.items()})
    if labels is not None:
        name = re.sub(r"[^\w.-]", "-", f"labels-{run.group}-{run.job_type}", flags=re.ASCII)[-NAME:]
        artifact = wandb.Artifact(name, type="label-index")
        artifact.add_file(str(labels), policy="mutable")
        run.log_artifact(artifact)
    try:
        run.finish()
    except TimeoutError:
        _say(f"not all was sent to {wandb_server()} yet; `wandb sync` sends {logger.save_dir}/wandb")


def _run_id(run_dir: Path) -> str:
    """The run's, as it is kept in the stage's folder; a new one if there is none."""
    with suppress(OSError, UnicodeDecodeError):
        kept = read_file(run_dir / ".wandb_id").decode().strip()
        if re.fullmatch(r"[\w-]{1,64}", kept):
            return kept
    return uuid.uuid4().hex[:12]


def _go_offline(run_dir: Path) -> None:
    os.environ["WANDB_MODE"] = "offline"
    _say(f"{wandb_server()} cannot be reached: logged offline; `wandb sync` sends {run_dir}/wandb")


def _say(message: str) -> None:
    print(f"usl: {message}", file=sys.stderr)


def _reachable() -> bool:
    """Whether the server answers at all, through whatever proxy the environment names.

    Asked in a thread of its own: the look-up of a name has no time limit.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(wandb_server(), timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            pass  # it does
        except (OSError, ValueError):
            return
        answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(answers)
