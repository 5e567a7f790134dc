"""`usl run CHAIN --slurm`: a chain as SLURM jobs, one a stage, each waiting for those it takes something from."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from usl_lightning.base.atomic import read_file
from usl_lightning.base.errors import UslError, printable

HEADER = """\
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
"""
"""One GPU for four hours; two minutes before they are over the stage saves, and its job goes back into the queue."""


@dataclass(frozen=True)
class Job:
    """One stage of a chain.

    Attributes:
        stage: its name.
        needs: the stages that must have ended well before.
        script: what `sbatch` is given.
        after: how the needed ones must have ended: `afterok`, well, or `afterany`, in any way.
    """

    stage: str
    needs: tuple[str, ...]
    script: str
    after: str = "afterok"


def job(run: str, stage: str, needs: Sequence[str], folder: Path, arguments: Sequence[str], header: str) -> Job:
    """The job of one stage.

    Args:
        run: name of the run.
        stage: of the chain.
        needs: stages it takes something from.
        folder: of the run; what the job prints goes into `STAGE.log` in it.
        arguments: of `usl run`, as typed, without those that are about SLURM.
        header: lines that begin with `#SBATCH`, and what the shell is to do first.
    """
    words = [*_usl("run"), *arguments, f"--only={stage}", _LAUNCHER]
    return Job(stage, tuple(dict.fromkeys(needs)), _script(run, stage, folder, header, f"exec {shlex.join(words)}"))


def arrays(
    table: str, levels: Sequence[Sequence[str]], folder: Path, arguments: Sequence[str], header: str
) -> list[Job]:
    """The jobs of a table: an array for each step, in which every task is a stage, and one that writes the table.

    A task that fails takes no other with it: those that need it fail at once, and the table says which.

    Args:
        table: its name.
        levels: names of stages in the pool; those of a level need only such of earlier ones.
        folder: of the table; what a task prints goes into `step_LEVEL-TASK.log` in it.
        arguments: of `usl table`, as typed, without those that are about SLURM.
        header: as `job` takes it.
    """
    jobs: list[Job] = []
    for level, names in enumerate(levels, 1):
        needs = tuple(each.stage for each in jobs if not each.stage.startswith(f"step_{level}"))
        for first in range(0, len(names), LARGEST):
            part, name = names[first : first + LARGEST], f"step_{level}" + (f"_{first}" if first else "")
            words = shlex.join([*_usl("table"), *arguments, _LAUNCHER])
            lines = f'stages=({shlex.join(part)})\nexec {words} "--only=${{stages[$SLURM_ARRAY_TASK_ID]}}"'
            script = _script(table, name, folder, f"#SBATCH --array=0-{len(part) - 1}\n{header}", lines, "-%a")
            jobs.append(Job(name, needs, script, "afterany"))
    last = _script(table, "table", folder, header, f"exec {shlex.join([*_usl('table'), *arguments])}")
    return [*jobs, Job("table", tuple(each.stage for each in jobs), last, "afterany")]


LARGEST = 1000
"""Tasks of an array: a SLURM that was not told otherwise takes 1001."""

_LAUNCHER = "--launcher=srun --kill-on-bad-exit=1"


def _usl(command: str) -> list[str]:
    return [sys.executable, "-m", "usl_lightning.cli", command]


def _script(run: str, name: str, folder: Path, header: str, command: str, task: str = "") -> str:
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={_quoted(f'{run}/{name}')}",
        f"#SBATCH --output={_quoted(_literal(str((folder / name).absolute())) + task + '.log')}",
        header.rstrip(),
        f"cd {shlex.quote(os.getcwd())}",
        command,
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A value as `sbatch` reads it from a script: between quotes, in which a backslash takes a character as it is.

    Raises:
        UslError: it has several lines; no `#SBATCH` line can hold it.
    """
    if not text.isprintable():
        raise UslError(f"--slurm: {printable(text)!r}: the name of a run or folder of a job is one line; rename it")
    if re.fullmatch(r"[\w./:@+=,%-]+", text):
        return text
    return '"{}"'.format(re.sub(r'(["\\])', r"\\\1", text))


def _literal(path: str) -> str:
    """A path of a log in which SLURM replaces nothing: neither `%` nor, with a backslash, anything at all."""
    return path if "\\" in path else path.replace("%", "%%")


def read_header(path: Path) -> str:
    """What the jobs ask SLURM for.

    Args:
        path: a file with lines that begin with `#SBATCH`, and what the shell is to do before the stage.

    Raises:
        UslError: it cannot be read, or asks for nothing.
    """
    try:
        lines = read_file(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UslError(f"--slurm-header {path}: cannot be read ({error})") from error
    if not any(line.startswith("#SBATCH") for line in lines):
        raise UslError(f"--slurm-header {path}: no line begins with #SBATCH; see configs/cluster/header.sh")
    return "\n".join(line for line in lines if not line.startswith("#!"))


def show(jobs: Sequence[Job]) -> None:
    """Print the scripts, each after the line that says what it waits for."""
    for each in jobs:
        print(f"# ---- {each.stage}{', after ' + ', '.join(each.needs) if each.needs else ''}\n{each.script}")


def submit(jobs: Sequence[Job], folder: Path) -> None:
    """Give the jobs to `sbatch`: each waits until those it needs have ended well.

    Args:
        jobs: in an order in which those needed come first.
        folder: of the run; it is made, for what the jobs print.

    Raises:
        UslError: there is no `sbatch`, or it refuses; names the jobs that are in the queue already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, str] = {}
    for each in jobs:
        after = [numbers[name] for name in each.needs if name in numbers]
        words = ["sbatch", "--parsable"]
        if after:  # a job whose stage failed leaves nothing that could be waited for
            words += [f"--dependency={each.after}:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
        numbers[each.stage] = _sbatch(words, each, list(numbers.values()))
        print(f"{each.stage}: job {numbers[each.stage]}{', after ' + ', '.join(after) if after else ''}", flush=True)


def _sbatch(words: Sequence[str], job: Job, queued: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, input=job.script, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise UslError("--slurm submit: there is no sbatch here; run it on a login node of the cluster") from None
    number = done.stdout.strip().partition(";")[0]  # JOB;CLUSTER where there are several
    if done.returncode or not number.isdigit():
        rest = f"; jobs {', '.join(queued)} are in the queue, scancel takes them out" if queued else ""
        raise UslError(f"sbatch refused stage {job.stage}: {(done.stderr or done.stdout).strip()}{rest}")
    return number
