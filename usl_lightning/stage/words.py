"""One stage as typed on the command line, and the folder it leaves. Imports nothing heavy."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usl_lightning.base.configs import compose, config_parts, find_config, find_labels
from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import as_seed, home, options
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.identity import StageIdentity, flatten, names_a_file
from usl_lightning.stage.published_lists import check_published_list

COMMANDS = ("fit", "validate", "test", "predict", "select", "propagate")
RESULTS = ("fit", "select", "propagate")
"""Commands that fill a stage folder; the others look at one."""
OPTIONS = {"predict": ("folder", "split", "out", "sort-into", "all-probabilities"), "export": ("out", "pixels")}
"""What a command takes that is no parameter of the stage."""

FLAGS = ("all-probabilities",)
"""Those of them that take no value."""

SHORT = {"keep": "model.keep_from", "allow-oracle": "model.allow_oracle"}
"""Options with a name of their own, and the parameters they mean."""


def found_files(overrides: Mapping[str, str]) -> dict[str, str]:
    """Overrides with the path of a shipped label index in place of its bare name."""
    return {key: find_labels(text) if names_a_file(key) else text for key, text in overrides.items()}


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
            if key in ("config", "c", "run_dir", "ckpt_path", *own) and key not in FLAGS and value in ("true", ""):
                raise UslError(f"--{key}: its value is missing")
        configs = [find_config(value) for key, value in given if key in ("config", "c")]
        if not configs:
            also = (
                "a run's folder, as in runs/photos, or "
                if command in OPTIONS or command in ("test", "validate")
                else ""
            )
            raise UslError(f"usl {command}: {also}--config FILE is missing; `usl configs` lists the shipped ones")
        first = configs[0]
        looks_at_own = command not in RESULTS and first.name == "config.yaml" and (first.parent / "stage.json").exists()
        stage = cls(command, configs, run_dir=first.parent if looks_at_own else Path("runs") / first.stem)
        for key, value in given:
            if key == "run_dir":
                stage.run_dir = home(value)
            elif key == "ckpt_path":
                stage.ckpt_path = os.path.expanduser(value)
            elif key == "extend":
                if value not in ("true", "false"):
                    raise UslError(f"--extend {value}: expected no value")
                stage.extend = value == "true"
            elif key == "wandb":
                stage.wandb = {"true": "online", "false": None}.get(value, value)
            elif key in own:
                stage.options[key] = os.path.expanduser(value)
            elif "" in key.rstrip("+").split("."):
                raise UslError(f"unexpected argument '--{key}'; expected --key value")
            elif key.endswith("+") and SHORT.get(key, key) in stage.overrides:
                raise UslError(f"--{key}= is there twice; give both at once, as in --{key}=[a, b]")
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

    def tree(self) -> dict[str, Any]:
        """The configuration with its overrides, nested, as LightningCLI takes it; see `composition`."""
        parts = [tree for config in self.configs for _, tree in config_parts(config)]
        return {"seed_everything": 0, **compose(parts, found_files(self.overrides))}

    def flat(self) -> dict[str, Any]:
        """The configuration with its overrides, as dotted keys without `init_args`."""
        return flatten(self.tree())

    def identity(self) -> dict[str, Any]:
        """What makes this stage's result what it is, as things are now; see `stage_identity`."""
        return self.noted_identity().fields

    def noted_identity(self) -> StageIdentity:
        """The same, to be handed on by whoever runs the stage."""
        return StageIdentity.noted(self.command, self.flat())

    def check(self) -> None:
        """Refuse what can be seen to be wrong without importing torch.

        Raises:
            UslError: one line that names the key or the file.
        """
        tree = self.tree()
        flat = flatten(tree)
        if any(key.partition(".")[0] == "rows" for key in flat):
            raise UslError(f"{self.configs[-1]}: a table of chains; run it with usl table {self.configs[-1].name}")
        if any(key.partition(".")[0] in ("stages", "rounds") for key in flat):
            raise UslError(f"{self.configs[-1]}: a chain of stages; run it with usl run {self.configs[-1].name}")
        if "selectors" in flat:
            raise UslError(f"{self.configs[-1]}: a comparison; run it with usl compare {self.configs[-1].name}")
        as_seed(str(tree["seed_everything"]), f"{'--' * ('seed_everything' in self.overrides)}seed_everything")
        if self.wandb not in (None, "online", "offline"):
            raise UslError(f"--wandb {self.wandb}: expected online or offline")
        labels = flat.get("data.labels")
        if labels is not None and self.command in ("fit", "propagate"):
            index = LabelIndex.read(str(labels))
            if not index.plain:
                (index.answered if flat.get("data.unanswered") == "leave_out" else index).for_training()
        kept = flat.get("model.keep_from")
        if kept is not None and self.command == "select":
            LabelIndex.read(str(kept))
        for key, value in flat.items():
            if names_a_file(key) and value is not None:
                check_published_list(key, Path(str(value)), flat)
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
        if not os.path.isfile(path):
            raise UslError(f"--ckpt_path: no such checkpoint: {path}")
        return path
