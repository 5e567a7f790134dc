"""`usl run CHAIN`: stages in order, each its own process; finished ones are skipped, interrupted ones resumed."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from usl_lightning.base.errors import UslError
from usl_lightning.base.files import noting, write_json
from usl_lightning.base.interrupt import HEEDED, Interruption
from usl_lightning.base.typed import as_count, home
from usl_lightning.chain import slurm
from usl_lightning.chain.file import Stage
from usl_lightning.chain.options import RunOptions, check_launcher
from usl_lightning.chain.plan import Plan
from usl_lightning.chain.process import start_stage
from usl_lightning.chain.sources import check_sources, check_taken
from usl_lightning.chain.summary import draw_summary, estimates, summarise, table, what_next
from usl_lightning.chain.waiting import WAITING, Waiting
from usl_lightning.labels import LabelIndex
from usl_lightning.stage.answers import KEY
from usl_lightning.stage.complaints import check_parameters
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.given import unwritable
from usl_lightning.stage.possible import check_possible
from usl_lightning.stage.words import StageCommand


def main(arguments: Sequence[str]) -> None:
    """Run a chain and print its table; exits with 3 if it waits for a person to label images.

    Raises:
        UslError: a mistake in the chain or its options, a changed stage, or a stage that failed.
    """
    run_chain(RunOptions.parse(arguments))


def run_chain(run: RunOptions) -> None:
    """Run a chain, as `main`.

    Args:
        run: what was typed, and what it comes to.
    """
    if run.slurm is None:
        check_launcher(run.launcher)
    _check_stages(run)
    _check_folder(run)
    if run.slurm is not None:
        _queue(run)
    elif run.dry_run:
        _run_stages(run)
    else:
        # Jobs of other stages may be at work in the folder of a run of which one is wanted.
        folder = run.out / run.name
        looks_only = _is_done(run) and not run.redo and unwritable(folder)
        lock = nullcontext() if looks_only or run.only is not None else StageFolder(folder).locked()
        with Interruption() as interruption, lock:
            try:
                conclude(run, _run_stages(run))
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
    _stop_if(run, waiting)


def conclude(run: RunOptions, ran: bool = True) -> None:
    """Sum the run up, when all of it is done: `summary.json`, its picture, and the table in print."""
    if not _is_done(run):
        return
    summary = summarise(run)
    if ran or not (run.out / run.name / "summary.json").exists():
        write_json(run.out / run.name / "summary.json", summary)
        draw_summary(run, summary)
    if run.brief:
        return
    print("\n".join([table(summary), *estimates(summary)]))
    print(f"next: {what_next(run, summary)}")


def _is_done(run: RunOptions) -> bool:
    return all(run.folder(stage.name).complete for stage in run.chain.stages)


def _run_stages(run: RunOptions) -> bool:
    """Run what is to be run; tells whether anything was. Exits with 3 if the rest waits for labels."""
    redo = _with_dependants(run.chain.stages, run.redo)
    _refuse_changes(run, redo)
    ran, waiting = False, Waiting(run.chain.stages)
    for number, stage in enumerate(run.chain.stages, 1):
        place = f"[{number}/{len(run.chain.stages)}] {stage.name}"
        if run.only not in (None, stage.name):
            continue
        _check_budgets(run)
        if not (run.dry_run and stage.name in redo) and waiting.holds(stage, _label_files(run, stage)):
            continue
        ran |= _run_one(run, stage, place, redo=stage.name in redo)
    if not run.dry_run:
        _stop_if(run, waiting)
    elif waiting.files:
        print("\n".join(waiting.lines(run.again)))
    return ran


def _check_budgets(run: RunOptions) -> None:
    """Refuse rounds of more images than there are, as soon as a choice has told how many these are."""
    chosen = (run.folder(stage.name).labels for stage in run.chain.stages if stage.command == "select")
    known = next((dataset for path in chosen if path.exists() and (dataset := LabelIndex.read(path).dataset)), None)
    for stage in run.chain.stages if known is not None else ():
        budget = stage.set.get("model.budget", "") if "model.keep_from" in stage.set else ""
        if known is not None and (as_count(budget) or 0) > known.size:
            raise UslError(f"stage {stage.name}: model.budget: {budget} images cannot be picked from {known.size}")


def _label_files(run: RunOptions, stage: Stage) -> dict[Path, Path | None]:
    """The label files that a stage takes from earlier ones, as far as they are there, and what each was begun with."""
    files: dict[Path, Path | None] = {}
    for earlier in run.chain.stages:
        folder, begun = run.folder(earlier.name), earlier.set.get("model.keep_from")
        if earlier.name in stage.needs("labels") and folder.complete and folder.labels.exists():
            files[folder.labels] = None if begun in (None, "null") else home(run.resolve(begun))
    return files


def _stop_if(run: RunOptions, waiting: Waiting) -> None:
    """End the command if some stage waits for labels."""
    if waiting.files:
        print("\n".join(waiting.lines(run.again)), flush=True)
        sys.exit(WAITING)


def _with_dependants(stages: list[Stage], redo: list[str]) -> set[str]:
    """The named stages and all that takes something from them, directly or not."""
    chosen = set(redo)
    for stage in stages:
        if chosen & set(stage.needs()):
            chosen.add(stage.name)
    return chosen


def _check_stages(run: RunOptions) -> None:
    """Refuse what can be seen to be wrong with any stage, before the first of them starts.

    Raises:
        UslError: names the stage, the key and what was expected.
    """
    with noting():
        _check_each(run)


def _check_each(run: RunOptions) -> None:
    earlier: dict[str, StageCommand] = {}
    for stage in run.chain.stages:
        overrides = {"seed_everything": str(run.seed), **stage.set}
        command = StageCommand(stage.command, [stage.config], overrides, run.folder(stage.name).path, wandb=run.wandb)
        try:
            check_sources(stage, earlier, run.out / run.name)
            check_parameters(command)
            starts = not run.folder(stage.name).complete or bool(run.redo)
            check_possible(command, here=starts and run.slurm is None and not run.launcher)
            check_taken(stage, command, earlier)
        except UslError as error:
            raise UslError(f"stage {stage.name}: {str(error).removeprefix('--')}") from error
        earlier[stage.name] = command


def _check_folder(run: RunOptions) -> None:
    """Refuse the folder of a stage, one with files that would be written over and are of no chain, or that is not ours.

    Raises:
        UslError: names one.
    """
    folder = run.out / run.name
    plan = Plan.read(folder)
    if plan is None and StageFolder(folder).record() is not None:
        raise UslError(f"{folder}: is the folder of a stage that was run alone; give this run another --name")
    if (run.redo or not _is_done(run)) and (problem := unwritable(folder)):
        raise UslError(f"{problem}; choose another --name or --out")
    if plan is not None or any(run.folder(stage.name).record() for stage in run.chain.stages):
        return
    for name in ("summary.json", "summary.png"):
        if os.path.lexists(folder / name):
            raise UslError(
                f"{folder / name}: is there already, and of no run; move it, or give this run another --name"
            )


def _refuse_changes(run: RunOptions, redo: set[str]) -> None:
    """Stop before anything runs if a stage was run with other settings; nothing is ever overwritten."""
    for stage in run.chain.stages:
        folder = run.folder(stage.name)
        if stage.name not in redo:
            folder.check_foreign(f"--redo {stage.name} puts it aside; or give this run another --name")
        ready = all(run.folder(name).complete and name not in redo for name in stage.needs())
        if folder.record() is not None and stage.name not in redo and ready:
            _refuse_changed(stage, folder, stage_command(run, stage))


def _refuse_changed(stage: Stage, folder: StageFolder, command: StageCommand) -> None:
    changes = folder.changes(command.identity(), command.flat().get(KEY))
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
    command = stage_command(run, stage)
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


def stage_command(run: RunOptions, stage: Stage) -> StageCommand:
    """The command that a stage of a run comes to.

    Raises:
        UslError: what it takes from an earlier stage is not there.
    """
    overrides = {"seed_everything": str(run.seed)}
    for key, value in stage.set.items():
        overrides[key] = run.resolve(value)
    return StageCommand(stage.command, [stage.config], overrides, run.folder(stage.name).path, wandb=run.wandb)


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
        process = start_stage(command.arguments(), launcher)
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
