"""One stage as typed on the command line, and the folder it leaves. Imports nothing heavy."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from usl_lightning.configs import find_config, load_yaml
from usl_lightning.errors import UslError, did_you_mean
from usl_lightning.files import write_json
from usl_lightning.identity import differences, digest, flatten, stage_identity
from usl_lightning.labels import LabelIndex
from usl_lightning.machine import this_machine

COMMANDS = ("fit", "validate", "test", "predict", "select")
RESULTS = ("fit", "select")
"""Commands that fill a stage folder; the others look at one."""
OPTIONS = {"predict": ("folder", "split", "out"), "export": ("out", "pixels")}
"""What a command takes that is no parameter of the stage."""

SHORT = {"keep": "model.keep_from", "allow-oracle": "model.allow_oracle"}
"""Options with a name of their own, and the parameters they mean."""


@dataclass
class StageCommand:
    """`usl COMMAND --config FILE [--KEY VALUE …]`.

    Attributes:
        command: one of `COMMANDS`.
        configs: configuration files, later ones win.
        overrides: dotted key -> text as typed; they win over every file.
        run_dir: the stage's folder.
        ckpt_path: checkpoint to continue or evaluate; `last` is the newest in the stage's folder.
        extend: allow a larger trainer.max_steps than the checkpoint was made for.
        wandb: log to Weights & Biases too: `online` or `offline`.
        options: what only this command takes, see `OPTIONS`.
    """

    command: str
    configs: list[Path]
    overrides: dict[str, str] = field(default_factory=dict)
    run_dir: Path = Path("runs/stage")
    ckpt_path: str | None = None
    extend: bool = False
    wandb: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, command: str, arguments: Sequence[str]) -> "StageCommand":
        """Read the arguments after the command, in any order.

        Raises:
            UslError: no configuration, or an argument that is not `--key value`.
        """
        given, own = options(arguments), OPTIONS.get(command, ())
        for key, value in given:
            if key in ("config", "c", "run_dir", "ckpt_path", *own) and value == "true":
                raise UslError(f"--{key}: its value is missing")
        configs = [find_config(value) for key, value in given if key in ("config", "c")]
        if not configs:
            raise UslError(f"usl {command}: --config FILE is missing; `usl configs` lists the shipped ones")
        first = configs[0]
        looks_at_own = command not in RESULTS and first.name == "config.yaml" and (first.parent / "stage.json").exists()
        stage = cls(command, configs, run_dir=first.parent if looks_at_own else Path("runs") / first.stem)
        for key, value in given:
            if key == "run_dir":
                stage.run_dir = Path(value)
            elif key == "ckpt_path":
                stage.ckpt_path = value
            elif key == "extend":
                stage.extend = value == "true"
            elif key == "wandb":
                stage.wandb = {"true": "online", "false": None}.get(value, value)
            elif key in own:
                stage.options[key] = value
            elif key not in ("config", "c"):
                stage.overrides[SHORT.get(key, key)] = value
        return stage

    def arguments(self) -> list[str]:
        """The command line that means this stage, as `parse` reads it."""
        line = [self.command, *(f"--config={path}" for path in self.configs), f"--run_dir={self.run_dir}"]
        line += [f"--ckpt_path={self.ckpt_path}"] if self.ckpt_path else []
        line += ["--extend"] if self.extend else []
        line += [f"--wandb={self.wandb}"] if self.wandb else []
        line += [f"--{key}={value}" for key, value in self.options.items()]
        return line + self.override_arguments()

    def override_arguments(self) -> list[str]:
        """The overrides as `--key=value`."""
        return [f"--{key}={value}" for key, value in self.overrides.items()]

    def flat(self) -> dict[str, Any]:
        """The configuration with its overrides, as dotted keys without `init_args`."""
        flat: dict[str, Any] = {"seed_everything": 0}
        for path in self.configs:
            flat.update(flatten(load_yaml(path)))
        return flat | self.flat_overrides()

    def flat_overrides(self) -> dict[str, Any]:
        """The overrides alone, in the same way."""
        flat: dict[str, Any] = {}
        for key, text in self.overrides.items():
            value = _typed(key, text)
            name = key.replace(".init_args", "")
            flat.update(flatten(value, name) if isinstance(value, Mapping) else {name: value})
        return flat

    def identity(self) -> dict[str, Any]:
        """What makes this stage's result what it is; see `stage_identity`."""
        return stage_identity(self.command, self.flat())

    def check(self) -> None:
        """Refuse what can be seen to be wrong without importing torch.

        Raises:
            UslError: one line that names the key or the file.
        """
        flat = self.flat()
        if "stages" in flat:
            raise UslError(f"{self.configs[-1]}: a chain of stages; run it with usl run {self.configs[-1].name}")
        if "selectors" in flat:
            raise UslError(f"{self.configs[-1]}: a comparison; run it with usl compare {self.configs[-1].name}")
        if self.wandb not in (None, "online", "offline"):
            raise UslError(f"--wandb {self.wandb}: expected online or offline")
        labels = flat.get("data.labels")
        if labels is not None and self.command == "fit":
            index = LabelIndex.read(str(labels))
            if not index.plain:
                index.for_training()
        kept, budget = flat.get("model.keep_from"), flat.get("model.budget")
        if kept is not None and self.command == "select":
            LabelIndex.read(str(kept))
        if self.command == "select" and isinstance(budget, int) and budget < 1:
            raise UslError(f"model.budget: {budget} images cannot be picked; expected at least 1")
        if self.ckpt_path is not None:
            self.checkpoint()
        elif self.command not in RESULTS:
            raise UslError(f"usl {self.command}: --ckpt_path FILE is missing; `last` is the newest in {self.run_dir}")

    def checkpoint(self) -> Path:
        """The checkpoint that `ckpt_path` means.

        Raises:
            UslError: there is none.
        """
        folder = StageFolder(self.run_dir)
        if self.ckpt_path == "last":
            if not folder.has_checkpoint:
                raise UslError(
                    f"--ckpt_path last: {folder.last_checkpoint} does not exist; leave it out to start afresh"
                )
            return folder.last_checkpoint
        path = Path(str(self.ckpt_path))
        if not path.is_file():
            raise UslError(f"--ckpt_path: no such checkpoint: {path}")
        return path


def _typed(key: str, text: str) -> Any:
    """The value that a text on the command line means; a text is itself, whole, as the path `photos #1` is."""
    try:
        value = yaml.safe_load(text) if text else text
    except yaml.YAMLError as error:
        raise UslError(f"--{key}: {text!r} is not valid YAML; put quotes around it if it is a text") from error
    return text if isinstance(value, str) and not text.startswith(("'", '"')) else value


def options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--key value`, `--key=value` and `--flag` in the order given."""
    options: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or not word.lstrip("-"):
            raise UslError(f"unexpected argument '{word}'; expected --key value")
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        options.append((key, value))
    return options


def known_options(command: str, arguments: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """`options` of a command that knows these and no others.

    Raises:
        UslError: another one; it names the nearest.
    """
    given = dict(options(arguments))
    for key in given:
        if key not in known:
            some = f"; expected --{', --'.join(known)}" if known else "; it takes none"
            raise UslError(f"{command}: unknown option --{key}{did_you_mean(key, known)}{some}")
    return given


class StageFolder:
    """`runs/<run>/<stage>/`: what a stage leaves behind.

    `config.yaml` (everything resolved), `stage.json` (identity and status), `checkpoints/`, `metrics.csv`,
    `result.json`, for a selection `labels.json`, `chosen.png` and `overview.npz`, and in `outputs/` what else its
    method hands on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path / "stage.json"
        self.last_checkpoint = path / "checkpoints" / "last.ckpt"
        self.labels = path / "labels.json"
        self.result = path / "result.json"
        self.picture = path / "chosen.png"
        self.overview = path / "overview.npz"
        self.files = path / "outputs"

    def record(self) -> dict[str, Any] | None:
        """`stage.json`, or None if the stage was never begun.

        Raises:
            UslError: the file is damaged.
        """
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UslError(f"{self.record_path}: cannot be read ({error}); use another --run_dir") from error
        return record

    @property
    def has_checkpoint(self) -> bool:
        """A run has saved its state here, even if the newest file has been lost since: the one before may be there."""
        return os.path.lexists(self.last_checkpoint)

    @property
    def complete(self) -> bool:
        """The stage has run to its end."""
        record = self.record()
        return record is not None and record["status"] == "complete"

    def changes(self, identity: Mapping[str, Any]) -> list[str]:
        """What differs between the run in this folder and `identity`; empty if nothing does."""
        record = self.record()
        if record is None or record["identity_hash"] == digest(identity):
            return []
        return differences(record["identity"], identity)

    def outputs(self) -> dict[str, str]:
        """Name -> path of what later stages can take from this one."""
        paths = {"checkpoint": self.last_checkpoint, "labels": self.labels}
        paths |= {path.stem: path for path in sorted(self.files.glob("[!.]*"))}
        return {name: str(path) for name, path in paths.items() if path.exists()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused as long as this process lives.

        Raises:
            UslError: another process holds it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below, after the lock
        except OSError as error:
            raise UslError(f"{self.path}: cannot be written ({error.strerror}); choose another --run_dir") from error
        # Forked workers would hold the lock for seconds after this process was killed.
        os.register_at_fork(after_in_child=lock.close)
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UslError(
                    f"{self.path}: another run is using this folder; wait for it or choose another"
                ) from None
            except OSError as error:  # a cluster's file system may have none
                print(
                    f"usl: {self.path}: this file system has no locks ({error.strerror}); do not start two runs in it",
                    file=sys.stderr,
                )
            try:
                yield
            finally:
                self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        """A refused command leaves no folder behind."""
        if not self.record_path.exists():
            (self.path / ".lock").unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Note that the stage is running."""
        self._write(identity, "running", seconds=self._spent())

    def pause(self, seconds: float) -> None:
        """Note the time spent by a run that was interrupted; a kill leaves no chance to."""
        record = self.record()
        if record is not None and record["status"] == "running":
            write_json(self.record_path, {**record, "seconds": round(self._spent() + seconds, 1)})

    def finish(self, identity: Mapping[str, Any], seconds: float, metrics: Mapping[str, Any]) -> None:
        """Note that the stage is complete, what came out, and the seconds of all its runs."""
        spent = round(self._spent() + seconds, 1)
        self._write(identity, "complete", seconds=spent, metrics=dict(metrics), outputs=self.outputs())

    def _spent(self) -> float:
        record = self.record() or {}
        return float(record.get("seconds", 0.0)) if record.get("status") == "running" else 0.0

    def _write(self, identity: Mapping[str, Any], status: str, **more: Any) -> None:
        record = {"status": status, "identity_hash": digest(identity), "identity": dict(identity), **more}
        record["machine"] = this_machine()
        write_json(self.record_path, record)
