"""`usl run CHAIN`: stages in order, each its own process; finished ones are skipped, interrupted ones resumed."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usl_lightning.configs import find_config, load_yaml
from usl_lightning.errors import UslError, did_you_mean
from usl_lightning.files import write_json
from usl_lightning.labels import LabelIndex
from usl_lightning.stage import RESULTS, StageCommand, StageFolder, options

REFERENCE = re.compile(r"\$\{([\w-]+)\.(\w+)\}")
CHAIN_KEYS = ("seed", "stages")
SHARED_GROUPS = ("data", "trainer", "checkpoint", "processes")
"""`usl run CHAIN --data.dir X` gives a parameter of these groups to every stage."""

STAGE_KEYS = ("name", "command", "config", "set")


@dataclass
class Stage:
    """One entry of a chain.

    Attributes:
        name: of its folder, unique in the chain.
        command: `fit` or `select`.
        config: its configuration file.
        set: overrides; a value may hold `${stage.checkpoint}` or `${stage.labels}` of an earlier stage.
    """

    name: str
    command: str
    config: Path
    set: dict[str, Any] = field(default_factory=dict)

    def needs(self) -> list[str]:
        """Names of the stages it takes something from."""
        return [match[1] for value in self.set.values() for match in REFERENCE.finditer(str(value))]


@dataclass
class Chain:
    """A file of stages and the folder they run in."""

    name: str
    seed: int
    stages: list[Stage]

    @classmethod
    def read(cls, path: Path) -> "Chain":
        """Read and check a chain file.

        Raises:
            UslError: names the file, the stage and the key.
        """
        content = load_yaml(path)
        if "stages" not in content:
            how = f"usl compare {path}" if "selectors" in content else f"to run one stage: usl fit --config {path}"
            raise UslError(f"{path}: not a chain, it has no 'stages:'; {how}")
        for key in content:
            if key not in CHAIN_KEYS:
                raise UslError(f"{path}: unknown key '{key}'{did_you_mean(key, CHAIN_KEYS)}; expected seed, stages")
        entries = content.get("stages")
        if not isinstance(entries, list) or not entries:
            raise UslError(f"{path}: stages: expected a list of name, command, config, set")
        stages: list[Stage] = []
        for number, entry in enumerate(entries):
            stages.append(_read_stage(path, number, entry, [stage.name for stage in stages]))
        seed = content.get("seed", 0)
        if not isinstance(seed, int):
            raise UslError(f"{path}: seed: expected a whole number, found {seed!r}")
        return cls(path.stem, seed, stages)


def _read_stage(path: Path, number: int, entry: Any, earlier: list[str]) -> Stage:
    if not isinstance(entry, Mapping):
        raise UslError(f"{path}: stage {number + 1}: expected name, command, config, set; found {entry!r}")
    name = str(entry.get("name", f"#{number + 1}"))
    for key in entry:
        if key not in STAGE_KEYS:
            raise UslError(f"{path}: stage {name}: unknown key '{key}'{did_you_mean(str(key), STAGE_KEYS)}")
    missing = [key for key in ("name", "command", "config") if key not in entry]
    if missing:
        raise UslError(f"{path}: stage {name}: '{missing[0]}' is missing")
    if not re.fullmatch(r"\w[\w-]*", name) or name in earlier:
        raise UslError(f"{path}: stage name '{name}' must be unique and of letters, digits, _ and -")
    if entry["command"] not in RESULTS:
        raise UslError(f"{path}: stage {name}: command '{entry['command']}'; expected {' or '.join(RESULTS)}")
    overrides = entry.get("set") or {}
    if not isinstance(overrides, Mapping):
        raise UslError(f"{path}: stage {name}: set: expected a mapping of keys to values")
    stage = Stage(name, entry["command"], find_config(entry["config"], beside=path.parent), dict(overrides))
    for needed in stage.needs():
        if needed not in earlier:
            raise UslError(
                f"{path}: stage {name} takes from '{needed}', which is no earlier stage{did_you_mean(needed, earlier)}"
            )
    return stage


@dataclass
class RunOptions:
    """`usl run CHAIN [--name NAME] [--seed N] [--out runs] [--redo STAGE] [--dry-run] [--STAGE.KEY VALUE]`."""

    chain: Chain
    out: Path
    name: str
    seed: int
    redo: list[str]
    dry_run: bool
    wandb: str | None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "RunOptions":
        """Read the arguments after `usl run`.

        Raises:
            UslError: no chain, or an option that means nothing.
        """
        if not arguments or arguments[0].startswith("-"):
            raise UslError("usl run: expected a chain, e.g. usl run digits_quickstart.yaml; `usl configs` lists them")
        chain = Chain.read(find_config(arguments[0]))
        run = cls(chain, Path("runs"), chain.name, chain.seed, [], False, None)
        stages = {stage.name: stage for stage in chain.stages}
        for key, value in options(arguments[1:]):
            stage, _, parameter = key.partition(".")
            if key == "seed" and value.lstrip("-").isdigit():
                run.seed = int(value)
            elif key == "redo" and value in stages:
                run.redo.append(value)
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


def _bad_option(key: str, value: str, stages: list[str]) -> str:
    if key in ("seed", "redo"):
        expected = "a whole number" if key == "seed" else f"one of the stages {', '.join(stages)}"
        return f"usl run: --{key} {value}: expected {expected}"
    groups = (f"{stage}.KEY" for stage in (*stages, *SHARED_GROUPS))
    options = ["name", "seed", "out", "redo", "dry-run", "wandb", *groups]
    return f"usl run: unknown option --{key}{did_you_mean(key, options)}; expected --{', --'.join(options)}"


def main(arguments: Sequence[str]) -> None:
    """Run a chain and print its table.

    Raises:
        UslError: a mistake in the chain or its options, a changed stage, or a stage that failed.
    """
    run = RunOptions.parse(arguments)
    if run.dry_run:
        _run_stages(run)
        return
    with StageFolder(run.out / run.name).locked():
        ran = _run_stages(run)
        summary = summarise(run)
        if ran or not (run.out / run.name / "summary.json").exists():
            write_json(run.out / run.name / "summary.json", summary)
            _draw_summary(run, summary)
        print(table(summary))


def _run_stages(run: RunOptions) -> bool:
    """Run what is to be run; tells whether anything was."""
    redo = _with_dependants(run.chain.stages, run.redo)
    _refuse_changes(run, redo)
    ran = False
    for number, stage in enumerate(run.chain.stages, 1):
        place = f"[{number}/{len(run.chain.stages)}] {stage.name}"
        ran |= _run_one(run, stage, place, redo=stage.name in redo)
    return ran


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
    command = _command(run, stage, folder)
    record = folder.record()
    if record is not None and not redo:
        _refuse_changed(stage, folder, command)  # what it takes from an earlier stage may be new by now
        if record["status"] == "complete":
            print(f"{place}: complete, skipped")
            return False
        if folder.last_checkpoint.exists():
            command.ckpt_path = "last"
    if run.dry_run:
        print(f"{place}: would {'resume' if command.ckpt_path else 'run'}")
        return False
    print(f"{place}: {'resuming' if command.ckpt_path else stage.command} {stage.config.name}", flush=True)
    if redo:
        _set_aside(folder)
    _launch(command, stage)
    return True


def _command(run: RunOptions, stage: Stage, folder: StageFolder) -> StageCommand:
    overrides = {"seed_everything": str(run.seed)}
    for key, value in stage.set.items():
        text = value if isinstance(value, str) else json.dumps(value)
        overrides[key] = REFERENCE.sub(lambda match: _output(run, match[1], match[2]), text)
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


def _launch(command: StageCommand, stage: Stage) -> None:
    process = subprocess.Popen([sys.executable, "-m", "usl_lightning.cli", *command.arguments()])
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, lambda signum, _: process.send_signal(signum))  # the stage saves and requeues
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()  # only a terminal sends SIGINT to both
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    if code == 2:
        sys.exit(2)  # the stage has said what is wrong
    if code:
        reason = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise UslError(f"stage {stage.name} {reason}; the same command continues it")


def summarise(run: RunOptions) -> dict[str, Any]:
    """What `summary.json` holds; see the documentation of the chain's files."""
    stages, results = [], []
    for stage in run.chain.stages:
        folder = run.folder(stage.name)
        record = folder.record() or {}
        metrics = record.get("metrics", {})
        stages.append(
            {
                "name": stage.name,
                "command": stage.command,
                "seconds": record.get("seconds"),
                "metrics": metrics,
                "outputs": record.get("outputs", {}),
            }
        )
        if stage.command == "fit" and "data.labels" in stage.set:
            results.append(_branch(run, stage, record))
    return {
        "run": run.name,
        "seed": run.seed,
        "seconds": round(sum(stage["seconds"] or 0 for stage in stages), 1),
        "stages": stages,
        "results": results,
    }


def _branch(run: RunOptions, stage: Stage, record: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of `results`: a classifier, and the selection it was trained on."""
    path = REFERENCE.sub(lambda match: _output(run, match[1], match[2]), str(stage.set["data.labels"]))
    index = LabelIndex.read(path)
    counts = [index.labels.count(label) for label in range(len(index.classes))]
    method = str(record.get("identity", {}).get("model.class_path", "")).rpartition(".")[2].lower()
    return {
        "selection": index.method.get("name", Path(path).stem), "method": method, "budget": len(index),
        "classes_covered": sum(count > 0 for count in counts), "class_counts": counts,
        "test_accuracy": record.get("metrics", {}).get("test_accuracy"), "labels": path,
        "seconds": record.get("seconds"),
    }  # fmt: skip


def _draw_summary(run: RunOptions, summary: Mapping[str, Any]) -> None:
    """Write `summary.png`, if every branch's selection left its picture."""
    strips = [Path(result["labels"]).with_name("chosen.png") for result in summary["results"]]
    if strips and all(strip.exists() for strip in strips):
        from usl_lightning.report.gallery import summary_picture

        summary_picture(summary["results"], strips, run.out / run.name / "summary.png")


def table(summary: Mapping[str, Any]) -> str:
    """The results as text."""
    rows = [("selection", "labels", "classes covered", "method", "test accuracy", "seconds")]
    for result in summary["results"]:
        counts = result["class_counts"]  # empty if the label file names no classes
        covered = f"{result['classes_covered']} of {len(counts)}" if counts else "-"
        accuracy = result["test_accuracy"]
        rows.append(
            (
                result["selection"],
                str(result["budget"]),
                covered,
                result["method"],
                "-" if accuracy is None else f"{accuracy:.3f}",
                str(result["seconds"]),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
