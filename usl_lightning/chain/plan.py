"""`run.json` of a chain's folder: the stages it is to have, and the command that makes or continues it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usl_lightning.base.errors import UslError, printable
from usl_lightning.base.files import read_json, write_json
from usl_lightning.base.typed import options
from usl_lightning.chain.file import Stage, is_name
from usl_lightning.stage.folder import StageFolder

_ONCE = ("redo", "only", "dry-run", "launcher")
"""Options of `usl run` that say what to do this time, not what the run is."""


def _stage(entry: Any) -> "PlannedStage":
    return PlannedStage(_name(entry["name"]), _text(entry["command"]), tuple(map(_name, _list(entry["needs"]))))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _name(value: Any) -> str:
    """That of a stage, and so of a folder."""
    if not is_name(_text(value)):
        raise ValueError(f"{value!r} is no name of a stage")
    return str(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a chain, which may not have begun.

    Attributes:
        name: of its folder.
        command: `fit` or `select`.
        needs: the stages it takes something from.
    """

    name: str
    command: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What `usl run` set out to do in a folder.

    Attributes:
        arguments: the words after `usl run`, without those that say what to do this time alone.
        seed: of all stages.
        stages: in order.
    """

    arguments: tuple[str, ...]
    seed: int
    stages: tuple[PlannedStage, ...]

    @classmethod
    def of(cls, typed: Sequence[str], seed: int, stages: Sequence[Stage]) -> "Plan":
        """The plan that the words after `usl run` mean.

        Args:
            typed: the chain, then options.
            seed, stages: what they come to.
        """
        kept = [f"--{key}={value}" for key, value in options(typed[1:]) if key not in _ONCE]
        planned = tuple(PlannedStage(s.name, s.command, tuple(dict.fromkeys(s.needs()))) for s in stages)
        return cls((*typed[:1], *kept), seed, planned)

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """The plan of a chain's folder; None where there is none.

        Raises:
            UslError: the file is damaged, or the folder is none.
        """
        path = folder / "run.json"
        for place in (folder, *folder.parents):
            if os.path.lexists(place) and not os.path.isdir(place):
                raise UslError(f"{place}: is there already, and no folder; choose another --name or --out")
        try:
            content: Mapping[str, Any] = read_json(path, "delete it, `usl run` writes it again")
            stages = tuple(map(_stage, _list(content["stages"])))
            arguments = tuple(map(_text, _list(content["arguments"])))
            if not stages:
                raise ValueError("no stage in it")
            return cls((arguments[0], *arguments[1:]), int(content["seed"]), stages)
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            reason = printable(repr(error), 100)
            raise UslError(f"{path}: damaged ({reason}); delete it, `usl run` writes it again") from error

    @contextmanager
    def written(self, folder: Path, stage: StageFolder) -> Iterator[None]:
        """Keep the plan in the chain's folder while a stage runs and after; one refused at once leaves nothing new."""
        path = folder / "run.json"
        before = Plan.read(folder)
        write_json(path, asdict(self))
        try:
            yield
        finally:
            if stage.record() is None:
                if before is None:
                    path.unlink(missing_ok=True)
                else:
                    write_json(path, asdict(before))
