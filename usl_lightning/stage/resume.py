"""Which checkpoint a stage goes on from, and whether it may."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from usl_lightning.base.classes import moved
from usl_lightning.base.errors import UslError
from usl_lightning.base.machine import is_main_process
from usl_lightning.engine.checkpoint_files import IDENTITY
from usl_lightning.models.encoder import read_checkpoint
from usl_lightning.stage.identity import differences, names_a_file


def _shapes_model(key: str) -> bool:
    return key.startswith("model.") and not names_a_file(key) and not key.endswith(".revision")


def check_resume(
    path: Path,
    identity: Mapping[str, Any],
    *,
    typed: Collection[str] | None = None,
    extend: bool = False,
    training: bool = True,
) -> None:
    """Refuse to continue or evaluate a checkpoint with another model than it holds.

    A parameter that an earlier version did not have is no difference while it is left at its default, which means what
    that version did; a class of which this is not so has another revision.

    Args:
        path: the checkpoint.
        identity: fields of the present configuration, defaults included.
        typed: those of its keys that are no defaults; None: all.
        extend: allow another trainer.max_steps.
        training: compare everything; otherwise the model alone.

    Raises:
        UslError: damaged, not ours, or names what differs.
    """
    stored = read_checkpoint(path).get(IDENTITY)
    if not isinstance(stored, dict):
        raise UslError(f"{path}: not a checkpoint of `usl fit`; to start from published weights see model.pretrained")
    old, new = moved(stored), dict(identity)
    if old.get("model.class_path") != new.get("model.class_path"):
        raise UslError(
            f"{path}: holds a {old.get('model.class_path')}, this configuration is a {new.get('model.class_path')}; "
            "to start from its encoder use --model.init_from"
        )
    if typed is not None:
        new = {key: new[key] for key in new if key in old or key in typed or key.endswith(".revision")}
    if extend:
        old.pop("trainer.max_steps", None), new.pop("trainer.max_steps", None)
    if not training:
        old, new = ({k: v for k, v in fields.items() if _shapes_model(k)} for fields in (old, new))
    changed = differences(old, new)
    if changed:
        raise UslError(f"{path}: cannot be continued, it is of another run: {'; '.join(changed)}")


def newest_whole(folder: Path) -> Path:
    """The newest checkpoint of a stage that can be read to its last bit; says so if it is not the last one.

    Args:
        folder: `checkpoints/` of the stage.

    Raises:
        UslError: none can.
    """
    last = folder / "last.ckpt"
    newest = last.resolve()
    earlier = sorted((path for path in folder.glob("step=*.ckpt") if path.name < newest.name), reverse=True)
    damage = ""
    for path in (last, *earlier):
        try:
            read_checkpoint(path)
        except UslError as error:
            damage = damage or str(error)
            continue
        if damage and is_main_process():
            print(f"usl: {damage}; continuing from {path}, the one before", file=sys.stderr)
        return path
    raise UslError(f"{damage}; there is no whole one before it: start afresh in another folder")
