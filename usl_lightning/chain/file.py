"""A chain: the file that names stages, what each does, and what it takes from earlier ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usl_lightning.base.configs import find_config, load_part
from usl_lightning.base.documents import NULLS, Plain, typed_text
from usl_lightning.base.errors import UslError, did_you_mean, printable
from usl_lightning.base.problems import kind_at
from usl_lightning.base.typed import as_seed
from usl_lightning.chain.rounds import stages_of
from usl_lightning.stage.words import RESULTS, StageCommand

REFERENCE = re.compile(r"\$\{([\w-]+)\.(\w+)\}")
CHAIN_KEYS = ("seed", "set", "stages", "rounds")
STAGE_KEYS = ("name", "command", "config", "set")


def is_name(text: str) -> bool:
    """Whether a stage, and so its folder, can be called this."""
    return re.fullmatch(r"\w[\w-]*", text) is not None and len(text.encode()) <= 200


def check_run_name(name: str, where: str) -> None:
    """Refuse a name of a run that is no name of one folder.

    Raises:
        UslError: says what is expected.
    """
    if name in (".", "..") or not name.isprintable() or "/" in name or len(name.encode()) > 255:
        raise UslError(
            f"{where}: {printable(name, 60)} is no name of one folder; expected up to 255 bytes without / and control "
            "characters; --out FOLDER says where it is to be"
        )


@dataclass
class Stage:
    """One entry of a chain.

    Attributes:
        name: of its folder, unique in the chain.
        command: `fit` or `select`.
        config: its configuration file.
        set: overrides, as typed; a value may hold `${stage.checkpoint}` or `${stage.labels}` of an earlier stage.
    """

    name: str
    command: str
    config: Path
    set: dict[str, str] = field(default_factory=dict)

    def needs(self, output: str | None = None) -> list[str]:
        """Names of the stages it takes something from, or this output alone."""
        found = [match for value in self.set.values() for match in REFERENCE.finditer(str(value))]
        return [match[1] for match in found if output in (None, match[2])]


@dataclass
class Chain:
    """A file of stages and the folder they run in; what it sets outside of them, it sets for all of them.

    Attributes:
        name: of the file.
        seed: of all stages.
        stages: in order, those of the rounds last.
        has_rounds: whether it has any.
    """

    name: str
    seed: int
    stages: list[Stage]
    has_rounds: bool = False

    @classmethod
    def read(cls, path: Path, more: Sequence[int] = ()) -> "Chain":
        """Read and check a chain file.

        Args:
            path: the file.
            more: images of each round that is added to its own, if it has any.

        Raises:
            UslError: names the file, the stage and the key.
        """
        return cls.of(load_part(path), path, more)

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path, more: Sequence[int] = ()) -> "Chain":
        """The chain that the content of a file means.

        Args:
            content: as `load_part` reads it.
            path: the file, for its name, its folder and for messages.
            more: images of each round that is added to its own, if it has any.

        Raises:
            UslError: names the file, the stage and the key.
        """
        if "rows" in content:
            raise UslError(f"{path}: a table of chains; run it with usl table {path.name}")
        if not {"stages", "rounds"} & content.keys():
            how = f"usl compare {path}" if "selectors" in content else f"to run one stage: usl fit --config {path}"
            raise UslError(f"{path}: not a chain, it has no 'stages:'; {how}")
        for key in content:
            if key not in CHAIN_KEYS:
                known = ", ".join(CHAIN_KEYS)
                raise UslError(f"{path}: unknown key '{key}'{did_you_mean(key, CHAIN_KEYS)}; expected {known}")
        entries, has_rounds = content.get("stages", []), "rounds" in content
        if not isinstance(entries, list) or not (entries or has_rounds):
            raise UslError(f"{path}: stages: expected a list of name, command, config, set")
        if has_rounds:
            entries = [*entries, *stages_of(path, content["rounds"], more)]
        shared = _settings(content, str(path))
        stages: list[Stage] = []
        for number, entry in enumerate(entries):
            stages.append(_read_stage(path, number, entry, shared, [stage.name for stage in stages]))
        seed = as_seed(content.get("seed", "0"), f"{path}: seed")
        return cls(path.stem, seed, stages, has_rounds)


def _settings(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What stands under `set` of a chain or a stage."""
    settings = entry.get("set") or {}
    if not isinstance(settings, Mapping):
        raise UslError(f"{where}: set: expected a mapping of keys to values")
    return dict(settings)


def _overrides(config: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as one would type them: null unsets, and in quotes is a text."""
    typed = {key: typed_text(value) for key, value in settings.items()}
    quoted = [key for key, value in settings.items() if not isinstance(value, Plain) and value in NULLS]
    tree = StageCommand("", [config], typed).tree() if quoted else {}
    for key in quoted:
        kind = kind_at(tree, [word for word in key.split(".") if word != "init_args"])
        typed[key] = f"./{typed[key]}" if kind.text and kind.optional else typed[key] if kind.text else repr(typed[key])
    return typed


def _read_stage(path: Path, number: int, entry: Any, shared: Mapping[str, Any], earlier: list[str]) -> Stage:
    if not isinstance(entry, Mapping):
        raise UslError(f"{path}: stage {number + 1}: expected name, command, config, set; found {entry!r}")
    name = str(entry.get("name", f"#{number + 1}"))
    for key in entry:
        if key not in STAGE_KEYS:
            raise UslError(f"{path}: stage {name}: unknown key '{key}'{did_you_mean(str(key), STAGE_KEYS)}")
    missing = [key for key in ("name", "command", "config") if not entry.get(key)]
    if missing:
        raise UslError(f"{path}: stage {name}: '{missing[0]}' is missing")
    for key in ("name", "command", "config"):
        if not isinstance(entry[key], str):
            raise UslError(f"{path}: stage {name}: {key}: expected a text, found {entry[key]!r}")
    if not is_name(name) or name in earlier:
        raise UslError(f"{path}: stage name '{name}' must be unique and of letters, digits, _ and -")
    if entry["command"] not in RESULTS:
        raise UslError(f"{path}: stage {name}: command '{entry['command']}'; expected {' or '.join(RESULTS)}")
    config = find_config(str(entry["config"]), beside=path.parent)
    settings = {**shared, **_settings(entry, f"{path}: stage {name}")}
    stage = Stage(name, str(entry["command"]), config, _overrides(config, settings))
    for needed in stage.needs():
        if needed not in earlier:
            raise UslError(
                f"{path}: stage {name} takes from '{needed}', which is no earlier stage{did_you_mean(needed, earlier)}"
            )
    return stage
