"""The words after `usl run`, and what they come to."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from usl_lightning.base.commands import COMMANDS
from usl_lightning.base.configs import find_config
from usl_lightning.base.errors import UslError, did_you_mean
from usl_lightning.base.typed import as_count, as_seed, home, options
from usl_lightning.chain.added import Added
from usl_lightning.chain.file import REFERENCE, Chain, check_run_name
from usl_lightning.chain.plan import Plan
from usl_lightning.stage.folder import StageFolder

WANDB = {"true": "online", "online": "online", "offline": "offline", "false": None}
"""What `--wandb` may be, and what it means."""

SHARED_GROUPS = ("data", "trainer", "checkpoint", "processes")
"""`usl run CHAIN --data.dir X` gives a parameter of these groups to every stage."""


@dataclass
class RunOptions:
    """`usl run CHAIN [--name NAME] [--seed N] [--out runs] [--redo STAGE] [--dry-run] [--STAGE.KEY VALUE]`.

    Attributes:
        only: run this stage alone; what it takes from must be complete.
        launcher: words before the command of each stage, such as `srun`, which starts it once for each process.
        slurm: make each stage a SLURM job: `print` the scripts or `submit` them.
        slurm_header: file of what the jobs ask SLURM for; None: `slurm.HEADER`.
        typed: the arguments, but those that are about SLURM.
        again: what is to be done once images are labelled.
        brief: print no table at the end.
    """

    chain: Chain
    out: Path
    name: str
    seed: int
    redo: list[str] = field(default_factory=list)
    dry_run: bool = False
    wandb: str | None = None
    only: str | None = None
    launcher: list[str] = field(default_factory=list)
    slurm: str | None = None
    slurm_header: Path | None = None
    typed: list[str] = field(default_factory=list)
    again: str = "repeat this command"
    brief: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "RunOptions":
        """Read the arguments after `usl run`.

        Raises:
            UslError: no chain, or an option that means nothing.
        """
        if not arguments or arguments[0].startswith("-"):
            raise UslError("usl run: expected a chain, e.g. usl run digits_quickstart.yaml; `usl configs` lists them")
        path, given = find_config(arguments[0]), options(arguments[1:])
        given = [*added_rounds(path, given), *given]
        more = [images for key, value in given if key == "more" for images in _rounds(value)]
        chain = Chain.read(path, more)
        added = Added.after(chain.stages, more) if more and not chain.has_rounds else None
        chain.stages += added.stages if added else []
        run = cls(chain, Path("runs"), chain.name, chain.seed, typed=[str(arguments[0])])
        stages = {stage.name: stage for stage in chain.stages}
        for key, value in given:
            stage, _, parameter = key.partition(".")
            run.typed += [] if key.startswith("slurm") else [f"--{key}={value}"]
            if key == "seed":
                run.seed = as_seed(value, "usl run: --seed")
            elif key == "redo" and value in stages:
                run.redo.append(value)
            elif key == "only" and value in stages:
                run.only = value
            elif key == "launcher":
                run.launcher = words_of(value)
            elif key == "slurm" and value in ("true", "print", "submit"):
                run.slurm = {"true": "print"}.get(value, value)
            elif key == "slurm-header":
                run.slurm_header = home(value)
            elif key in ("name", "out") and not value:
                raise UslError(f"usl run: --{key}: its value is missing")
            elif key in ("name", "out"):
                setattr(run, key, home(value) if key == "out" else value)
            elif key == "more":
                pass  # the chain has them
            elif key == "dry-run":
                run.dry_run = True
            elif key == "wandb" and value in WANDB:
                run.wandb = WANDB[value]
            elif stage in stages and parameter:
                stages[stage].set[parameter] = value
            elif stage in SHARED_GROUPS and parameter:
                for each in chain.stages:
                    each.set[key] = value
            else:
                raise UslError(_bad_option(key, value, list(stages)))
        if run.slurm_header is not None and run.slurm is None:
            raise UslError(
                "usl run: --slurm-header: is for jobs of SLURM; give --slurm print or submit, or leave it out"
            )
        if added:
            added.settle()
        check_run_name(run.name, "usl run: --name")
        return run

    def folder(self, stage: str) -> StageFolder:
        """Where a stage of this run lives."""
        return StageFolder(self.out / self.name / stage)

    def resolve(self, text: str) -> str:
        """A text with the path of what a stage left in place of each `${stage.output}`.

        Raises:
            UslError: a stage has not left it.
        """
        return REFERENCE.sub(lambda match: _output(self, match[1], match[2]), text)


def added_rounds(path: Path, given: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """`--more` as `usl more` has noted it in the run's folder; nothing if it is given, or none was added.

    Args:
        path: of the chain.
        given: the options.
    """
    last = dict(given)
    plan = Plan.read(home(last.get("out", "runs")) / last.get("name", path.stem))
    if "more" in last or plan is None:
        return []
    return [(key, value) for key, value in options(plan.arguments[1:]) if key == "more"]


def _rounds(text: str) -> list[int]:
    """The budgets of further rounds, `40,40`."""
    numbers = [as_count(number) or 0 for number in text.split(",")]
    if not all(numbers):
        raise UslError(f"usl run: --more {text}: expected the images of each further round, 1 or more, such as 40,40")
    return numbers


def check_launcher(words: Sequence[str]) -> None:
    """Refuse a launcher that is not on this machine.

    Raises:
        UslError: names it.
    """
    if words and shutil.which(words[0]) is None:
        raise UslError(f"--launcher {words[0]}: No such file or program; expected one such as srun or torchrun")


def words_of(text: str) -> list[str]:
    """A launcher's words, parted as a shell parts them.

    Raises:
        UslError: an open quote.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UslError(f"usl run: --launcher {text}: {error}; expected words as a shell takes them") from error


def _bad_option(key: str, value: str, stages: list[str]) -> str:
    one = f"one of the stages {', '.join(stages)}"
    expected = {"redo": one, "only": one, "slurm": "print or submit", "wandb": "online or offline"}.get(key)
    if expected:
        return f"usl run: --{key} {value}: expected {expected}"
    groups = (f"{stage}.KEY" for stage in (*stages, *SHARED_GROUPS))
    own = (option.name for option in COMMANDS["run"].options if "." not in option.name)
    options = [*own, *groups]
    return f"usl run: unknown option --{key}{did_you_mean(key, options)}; expected --{', --'.join(options)}"


def _output(run: RunOptions, stage: str, name: str) -> str:
    outputs = run.folder(stage).outputs()
    if name not in outputs:
        has = f"it has {', '.join(outputs) or 'nothing'}; if it is lost, repeat the stage with --redo {stage}"
        raise UslError(f"${{{stage}.{name}}}: stage {stage} left no {name}; {has}")
    return outputs[name]
