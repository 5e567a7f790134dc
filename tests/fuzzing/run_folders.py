"""Readers of what a run leaves, which people copy, edit and cut: records, plans, figures, configurations."""

import atexit
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from fuzzing import Reader
from fuzzing.mutations import JSON, TABLE, YAML
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import write_json
from usl_lightning.chain.options import RunOptions
from usl_lightning.chain.pipeline import main
from usl_lightning.chain.plan import Plan
from usl_lightning.chain.summary import summarise, table
from usl_lightning.engine.logs import HEADER, MetricsCSV
from usl_lightning.report import chosen, results, training
from usl_lightning.report.markup import Names
from usl_lightning.report.run import RunReport, StageReport, read_curves, read_run
from usl_lightning.stage.folder import StageFolder
from usl_lightning.stage.launch import run_stage
from usl_lightning.stage.words import StageCommand

CHAIN = """\
stages:
  - name: pretrain
    command: fit
    config: digits_simclr.yaml
    set: {model.backbone: small_nf, model.hidden_dim: 32, model.projection_dim: 16, data.batch_size: 16}
  - {name: select, command: select, config: digits_usl.yaml, set: {model.init_from: "${pretrain.checkpoint}"}}
  - name: train
    command: fit
    config: digits_fixmatch.yaml
    set: {model.backbone: small_nf, data.labels: "${select.labels}", data.batch_size: 8}
set: {trainer.max_steps: 3, trainer.log_every_n_steps: 1, trainer.enable_progress_bar: false}
"""
CHAIN_OF_ONE = """\
stages:
  - name: train
    command: fit
    config: digits_fixmatch.yaml
    set: {model.backbone: small_nf, data.labels: LABELS, data.batch_size: 8}
set: {trainer.max_steps: 3, trainer.log_every_n_steps: 1, trainer.enable_progress_bar: false}
"""
"""Its last stage alone."""


@cache
def finished_run() -> Path:
    """The folder of a run of three stages, made by the product in this process; beside it, `chain.yaml`."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(_remove, folder, os.getpid())
    (folder / "chain.yaml").write_text(CHAIN)
    labels = folder / "run" / "select" / "labels.json"
    (folder / "train.yaml").write_text(CHAIN_OF_ONE.replace("LABELS", str(labels)))
    run = RunOptions.parse([str(folder / "chain.yaml"), "--out", str(folder), "--name", "run"])
    for stage in run.chain.stages:
        overrides = {"seed_everything": "0", **{key: run.resolve(value) for key, value in stage.set.items()}}
        run_stage(StageCommand(stage.command, [stage.config], overrides, run.folder(stage.name).path))
    write_json(folder / "run" / "run.json", asdict(Plan.of(run.typed, 0, run.chain.stages)))
    return folder / "run"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _placed(file: str, folder: Path) -> Path:
    """A copy of the run, which is not complete: its last stage has begun."""
    shutil.copy(finished_run().parent / "train.yaml", folder)
    shutil.copytree(finished_run(), folder / "run", symlinks=True)
    return folder / "run" / file


def _begun(file: str, folder: Path) -> Path:
    path = _placed(file, folder)
    record = path.parent / "train" / "stage.json" if path.parent.name == "run" else path.parent / "stage.json"
    record.write_text(record.read_text().replace('"complete"', '"running"'))
    return path


def _sections(run: Path) -> None:
    """All of a report but the pictures."""
    report = read_run(run)
    results.headline(report)
    for part in (results.unfinished, results.stage_figures, results.times, results.commands):
        part(report)
    results.results(report, Names())
    results.machine(report, {})
    training.learning_curves(report, Names())
    training.confusions(report)
    chosen.classes([chosen.Choice(stage, stage.chosen, None, None) for stage in report.selections if stage.chosen])


def _dry_run(run: Path) -> None:
    with suppress(SystemExit):
        main([str(run.parent / "train.yaml"), "--dry-run", "--out", str(run.parent), "--name", run.name])


def read_record(path: Path) -> None:
    """`usl run --dry-run`, `usl report`, the summary; a record that is paused, begun and finished again."""
    run, content = path.parents[1], path.read_bytes()
    problems = []
    looks = (_dry_run, _sections, _summary)
    for look in looks if content in _records() else (looks[zlib.crc32(content) % 3],):
        try:
            look(run)
        except UslError as error:
            problems.append(error)
    folder = StageFolder(path.parent)
    with suppress(UslError):
        folder.pause(1.0)
    path.write_bytes(content)
    with suppress(UslError):
        folder.begin({"command": "fit"})
    if problems:
        raise problems[0]


def _summary(run: Path) -> None:
    options = RunOptions.parse([str(run.parent / "train.yaml"), "--out", str(run.parent), "--name", run.name])
    table(summarise(options))


def read_plan(path: Path) -> None:
    """`usl report`."""
    _sections(path.parent)


def read_of_stage(path: Path) -> None:
    """The report of the stage alone that the file is of."""
    stage = StageReport(StageFolder(path.parent), json.loads((path.parent / "stage.json").read_text()), "fit")
    report = RunReport(path.parent, None, (stage,))
    for part in (results.unfinished, results.stage_figures, results.commands, training.confusions):
        part(report)
    results.results(report, Names())
    if zlib.crc32(path.read_bytes()) % 10 == 0:  # it takes long
        training.learning_curves(report, Names())


def read_labels(path: Path) -> None:
    """The report of a run with this selection."""
    report = read_run(path.parents[1])
    results.headline(report)
    results.results(report, Names())
    results.commands(report)
    chosen.classes([chosen.Choice(stage, stage.chosen, None, None) for stage in report.selections if stage.chosen])


def read_metrics(path: Path) -> None:
    """A resume, which rewinds it and completes a step of it, and the report's curves."""
    content = path.read_bytes()
    read_curves(path)
    metrics = MetricsCSV(path)
    metrics.noted(1)
    metrics.complete({"loss": 1.0}, 1)
    path.write_bytes(content)
    metrics.rewind(2)
    assert path.read_text().startswith(HEADER)
    metrics.complete({"loss": 1.0}, 1)
    assert "loss" in metrics.noted(1)
    read_of_stage(path)


@cache
def _records() -> list[bytes]:
    content = (finished_run() / "train" / "stage.json").read_bytes()
    return [content, content.replace(b'"complete"', b'"running"')]


PLACES: dict[str, Callable[[Path], Path]] = {
    "stage_json": partial(_placed, "train/stage.json"),
    "run_json": partial(_begun, "run.json"),
    "metrics_csv": partial(_placed, "train/metrics.csv"),
    "evaluation_json": partial(_placed, "train/evaluation.json"),
    "run_config_yaml": partial(_begun, "train/config.yaml"),
    "run_labels_json": partial(_placed, "select/labels.json"),
}

READERS = (
    Reader("stage_json", ".json", _records, read_record, JSON, PLACES["stage_json"]),
    Reader("run_json", ".json", None, read_plan, JSON, PLACES["run_json"]),
    Reader("metrics_csv", ".csv", None, read_metrics, TABLE, PLACES["metrics_csv"]),
    Reader("evaluation_json", ".json", None, read_of_stage, JSON, PLACES["evaluation_json"]),
    Reader("run_config_yaml", ".yaml", None, read_of_stage, YAML, PLACES["run_config_yaml"]),
    Reader("run_labels_json", ".json", None, read_labels, JSON, PLACES["run_labels_json"]),
)
