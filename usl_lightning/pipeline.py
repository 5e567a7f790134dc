"""`usl run CHAIN`: stages in order, each its own process; finished ones are skipped, interrupted ones resumed."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from usl_lightning import slurm
from usl_lightning.chain import REFERENCE, Chain, Stage
from usl_lightning.configs import find_config
from usl_lightning.errors import UslError, did_you_mean
from usl_lightning.files import write_json
from usl_lightning.interrupt import HEEDED, Interruption
from usl_lightning.plan import Plan
from usl_lightning.stage import StageCommand, StageFolder, options
from usl_lightning.summary import draw_summary, summarise, table
from usl_lightning.waiting import WAITING, Waiting

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

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "RunOptions":
        """Read the arguments after `usl run`.

        Raises:
            UslError: no chain, or an option that means nothing.
        """
        if not arguments or arguments[0].startswith("-"):
            raise UslError("usl run: expected a chain, e.g. usl run digits_quickstart.yaml; `usl configs` lists them")
        chain = Chain.read(find_config(arguments[0]))
        run = cls(chain, Path("runs"), chain.name, chain.seed, typed=[str(arguments[0])])
        stages = {stage.name: stage for stage in chain.stages}
        for key, value in options(arguments[1:]):
            stage, _, parameter = key.partition(".")
            run.typed += [] if key.startswith("slurm") else [f"--{key}={value}"]
            if key == "seed" and value.lstrip("-").isdigit():
                run.seed = int(value)
            elif key == "redo" and value in stages:
                run.redo.append(value)
            elif key == "only" and value in stages:
                run.only = value
            elif key == "launcher":
                run.launcher = shlex.split(value)
            elif key == "slurm" and value in ("true", "print", "submit"):
                run.slurm = {"true": "print"}.get(value, value)
            elif key == "slurm-header":
                run.slurm_header = Path(value)
            elif key in ("name", "out"):
                setattr(run, key, Path(value) if key == "out" else value)
            elif key == "dry-run":
                run.dry_run = True
            elif key == "wandb":
                run.wandb = {"true": "online"}.get(value, value)
            elif stage in stages and parameter:
                stages[stage].set[parameter] = value
            elif stage in SHARED_GROUPS and parameter:
                for each in chain.stages:
                    each.set[key] = value
            else:
                raise UslError(_bad_option(key, value, list(stages)))
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


def _bad_option(key: str, value: str, stages: list[str]) -> str:
    one = f"one of the stages {', '.join(stages)}"
    expected = {"seed": "a whole number", "redo": one, "only": one, "slurm": "print or submit"}.get(key)
    if expected:
        return f"usl run: --{key} {value}: expected {expected}"
    groups = (f"{stage}.KEY" for stage in (*stages, *SHARED_GROUPS))
    own = ("name", "seed", "out", "redo", "only", "dry-run", "wandb", "launcher", "slurm", "slurm-header")
    options = [*own, *groups]
    return f"usl run: unknown option --{key}{did_you_mean(key, options)}; expected --{', --'.join(options)}"


def main(arguments: Sequence[str]) -> None:
    """Run a chain and print its table; exits with 3 if it waits for a person to label images.

    Raises:
        UslError: a mistake in the chain or its options, a changed stage, or a stage that failed.
    """
    run = RunOptions.parse(arguments)
    if run.slurm is not None:
        _queue(run)
    elif run.dry_run:
        _run_stages(run)
    else:
        # Jobs of other stages may be at work in the folder of a run of which one is wanted.
        lock = nullcontext() if run.only is not None else StageFolder(run.out / run.name).locked()
        with Interruption() as interruption, lock:
            try:
                _conclude(run, _run_stages(run))
            except KeyboardInterrupt:
                interruption.requeue()  # between two stages; a stage has done it itself
                raise


def _queue(run: RunOptions) -> None:
    """Print or submit a job for each stage that is not complete, and does not wait for labels."""
    if run.redo or run.only:
        raise UslError("usl run: --slurm takes whole chains; to repeat a stage give the run another --name")
    _refuse_changes(run, set())
    header = slurm.HEADER if run.slurm_header is None else slurm.read_header(run.slurm_header)
    folder = run.out / run.name
    jobs, waiting = [], Waiting(run.chain.stages)
    for stage in run.chain.stages:
        if not run.folder(stage.name).complete and not waiting.holds(stage, _label_files(run, stage)):
            needs = [name for name in stage.needs() if not run.folder(name).complete]
            jobs.append(slurm.job(run.name, stage.name, needs, folder, run.typed, header))
    if run.slurm == "submit" and not run.dry_run:
        slurm.submit(jobs, folder)
    else:
        slurm.show(jobs)
    _stop_if(waiting)


def _conclude(run: RunOptions, ran: bool) -> None:
    """Sum the run up, when all of it is done."""
    if not all(run.folder(stage.name).complete for stage in run.chain.stages):
        return
    summary = summarise(run)
    if ran or not (run.out / run.name / "summary.json").exists():
        write_json(run.out / run.name / "summary.json", summary)
        draw_summary(run, summary)
    print(table(summary))


def _run_stages(run: RunOptions) -> bool:
    """Run what is to be run; tells whether anything was. Exits with 3 if the rest waits for labels."""
    redo = _with_dependants(run.chain.stages, run.redo)
    _refuse_changes(run, redo)
    ran, waiting = False, Waiting(run.chain.stages)
    for number, stage in enumerate(run.chain.stages, 1):
        place = f"[{number}/{len(run.chain.stages)}] {stage.name}"
        if run.only not in (None, stage.name):
            continue
        if not (run.dry_run and stage.name in redo) and waiting.holds(stage, _label_files(run, stage)):
            continue
        ran |= _run_one(run, stage, place, redo=stage.name in redo)
    if not run.dry_run:
        _stop_if(waiting)
    elif waiting.files:
        print("\n".join(waiting.lines()))
    return ran


def _label_files(run: RunOptions, stage: Stage) -> list[Path]:
    """The label files that a stage takes from earlier ones, as far as they are there."""
    folders = [run.folder(name) for name in stage.needs("labels")]
    return [folder.labels for folder in folders if folder.complete and folder.labels.exists()]


def _stop_if(waiting: Waiting) -> None:
    """End the command if some stage waits for labels."""
    if waiting.files:
        print("\n".join(waiting.lines()), flush=True)
        sys.exit(WAITING)


def _with_dependants(stages: list[Stage], redo: list[str]) -> set[str]:
    """The named stages and all that takes something from them, directly or not."""
    chosen = set(redo)
    for stage in stages:
        if chosen & set(stage.needs()):
            chosen.add(stage.name)
    return chosen


def _refuse_changes(run: RunOptions, redo: set[str]) -> None:
    """Stop before anything runs if a stage was run with other settings; nothing is ever overwritten."""
    for stage in run.chain.stages:
        folder = run.folder(stage.name)
        ready = all(run.folder(name).complete and name not in redo for name in stage.needs())
        if folder.record() is not None and stage.name not in redo and ready:
            _refuse_changed(stage, folder, _command(run, stage, folder))


def _refuse_changed(stage: Stage, folder: StageFolder, command: StageCommand) -> None:
    changes = folder.changes(command.identity())
    if changes:
        raise UslError(
            f"{folder.path}: {stage.name} was run with other settings: {'; '.join(changes)}; repeat it and what "
            f"depends on it with --redo {stage.name}, or give this run another --name"
        )


def _run_one(run: RunOptions, stage: Stage, place: str, *, redo: bool) -> bool:
    """Skip, resume or run one stage; tells whether it ran."""
    folder = run.folder(stage.name)
    waiting = [name for name in stage.needs() if not run.folder(name).complete]
    if run.dry_run and (waiting or redo):
        print(f"{place}: would run")
        return False
    if waiting:
        raise UslError(
            f"usl run: --only {stage.name}: it takes from {', '.join(waiting)}, not complete in {folder.path.parent}"
        )
    command = _command(run, stage, folder)
    record = folder.record()
    if record is not None and not redo:
        _refuse_changed(stage, folder, command)  # what it takes from an earlier stage may be new by now
        if record["status"] == "complete":
            print(f"{place}: complete, skipped")
            return False
        if folder.has_checkpoint:
            command.ckpt_path = "last"
    if run.dry_run:
        print(f"{place}: would {'resume' if command.ckpt_path else 'run'}")
        return False
    print(f"{place}: {'resuming' if command.ckpt_path else stage.command} {stage.config.name}", flush=True)
    if redo:
        _set_aside(folder)
    with Plan.of(run.typed, run.seed, run.chain.stages).written(run.out / run.name, folder):
        _launch(command, stage, run.launcher)
    return True


def _command(run: RunOptions, stage: Stage, folder: StageFolder) -> StageCommand:
    overrides = {"seed_everything": str(run.seed)}
    for key, value in stage.set.items():
        text = value if isinstance(value, str) else json.dumps(value)
        overrides[key] = run.resolve(text)
    return StageCommand(stage.command, [stage.config], overrides, folder.path, wandb=run.wandb)


def _output(run: RunOptions, stage: str, name: str) -> str:
    outputs = run.folder(stage).outputs()
    if name not in outputs:
        has = f"it has {', '.join(outputs) or 'nothing'}; if it is lost, repeat the stage with --redo {stage}"
        raise UslError(f"${{{stage}.{name}}}: stage {stage} left no {name}; {has}")
    return outputs[name]


def _set_aside(folder: StageFolder) -> None:
    """Keep what an earlier run left, under another name: nothing is overwritten."""
    if folder.path.exists():
        number = 1
        while (aside := folder.path.with_name(f"{folder.path.name}.old{number}")).exists():
            number += 1
        folder.path.rename(aside)


def _launch(command: StageCommand, stage: Stage, launcher: Sequence[str]) -> None:
    """Run a stage in a process of its own; a signal is handed on, and the stage saves, and requeues its job."""
    with Interruption() as interruption:
        process = _start([*launcher, sys.executable, "-m", "usl_lightning.cli", *command.arguments()], launcher)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGUSR1 if interruption.signum == signal.SIGUSR1 else signal.SIGTERM)
            process.wait()
            raise
    if code == 2:
        sys.exit(2)  # the stage has said what is wrong
    if code == 130:
        raise KeyboardInterrupt  # it has been told to stop, and has saved
    if code:
        reason = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise UslError(f"stage {stage.name} {reason}; the same command continues it")


def _start(words: Sequence[str], launcher: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a stage; signals are left blocked, here until the process is known, in the stage until it can heed them."""
    heed = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, HEEDED)
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    try:
        return subprocess.Popen(words, preexec_fn=heed if launcher else None)
    except OSError as error:
        heed()
        raise UslError(f"usl run: --launcher {shlex.join(launcher)}: {words[0]}: {error.strerror}") from error
