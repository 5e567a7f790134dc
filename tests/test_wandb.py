"""`--wandb offline`: a complete run directory without a network, and a resume that goes on in the same run."""

import json
import os
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from runs import FIXMATCH, SIMCLR, kill, together, usl, write_labels
from wandb.proto import wandb_internal_pb2

from usl_lightning.engine import wandb_run
from usl_lightning.engine.wandb_run import wandb_logger

BLOCK, HEADER = 32768, 7

NO_NETWORK = dict.fromkeys(("https_proxy", "http_proxy", "WANDB_BASE_URL"), "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What wandb and its logger note in the environment is not for the commands of later tests."""
    with mock.patch.dict(os.environ):
        yield


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format behind seven bytes."""
    content, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        length, kind = struct.unpack_from("<HB", content, place + 4)
        if left < HEADER or kind == 0:
            place += left
            continue
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def of_kind(path: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(path) if record.WhichOneof("record_type") == kind]


def files_of(artifact: Any) -> dict[str, bytes]:
    """Name -> content of what an artifact that was not sent yet holds."""
    return {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}


def history(path: Path) -> list[dict[str, Any]]:
    rows = (record.history.item for record in records(path) if record.WhichOneof("record_type") == "history")
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was told to stop after step 5, and its continuation."""
    folder = tmp_path_factory.mktemp("wandb")
    words = [*SIMCLR, "--trainer.max_steps", "8", "--checkpoint.every_steps", "4", "--trainer.val_check_interval", "4"]
    words += ["--run_dir", "runs/chain/stage", "--wandb", "offline"]
    words += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "lightning"]
    assert usl(folder, *words, kill(5, by="SIGTERM"), **NO_NETWORK).code == 130
    usl(folder, *words, "--ckpt_path", "last", **NO_NETWORK).done()
    return folder / "runs/chain/stage"


def test_a_resume_is_the_same_run(run_dir: Path) -> None:
    name = (run_dir / ".wandb_id").read_text()
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert [folder.name.rsplit("-", 1)[1] for folder in folders] == [name] * 2
    for folder in folders:
        run = next(r.run for r in records(folder / f"run-{name}.wandb") if r.WhichOneof("record_type") == "run")
        assert (run.run_id, run.run_group, run.job_type) == (name, "chain", "stage")
        assert (run.project, run.display_name) == ("usl-lightning", "chain/stage")


def test_the_configuration_is_there(run_dir: Path) -> None:
    resolved = yaml.safe_load((run_dir / "config.yaml").read_text())
    for path in run_dir.glob("wandb/offline-run-*/*.wandb"):
        run = next(r.run for r in records(path) if r.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["model.temperature"] == resolved["model"]["init_args"]["temperature"]
        assert config["data.batch_size"] == 64
        assert config["model.backbone"] == "small_w16"


def test_the_metrics_are_those_of_metrics_csv(run_dir: Path) -> None:
    logged: dict[tuple[int, str], float] = {}
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        assert next(reversed(list(records(path)))).WhichOneof("record_type") == "exit", "the run was not closed"
        for row in history(path):
            step = row["trainer/global_step"]
            own = {key for key in row if not key.startswith("_")} - {
                "trainer/global_step",
                "epoch",
                "images_per_second",
            }
            logged |= {(step, key): row[key] for key in own}
    rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()[1:]]
    noted = {(int(step), name): float(value) for step, name, value in rows}
    assert {step for step, name in noted if name == "loss"} == set(range(8))
    assert logged == pytest.approx(noted)


def test_a_logger_of_lightning_is_one_line_more(run_dir: Path) -> None:
    """As `--trainer.logger TensorBoardLogger`, which needs a package."""
    for number, steps in enumerate(({0, 1, 2, 3, 4}, {6, 7})):
        rows = (run_dir / f"../../../lightning/lightning_logs/version_{number}/metrics.csv").read_text().splitlines()
        steps_column = rows[0].split(",").index("step")
        assert {int(row.split(",")[steps_column]) for row in rows[1:]} >= steps


def test_a_logger_whose_package_is_missing_is_refused_in_one_line(tmp_path: Path) -> None:
    """In another Python, in which the two packages cannot be found however many are installed."""
    (tmp_path / "hide").mkdir()
    hidden = "import sys\nsys.modules.update(tensorboard=None, tensorboardX=None)\n"
    (tmp_path / "hide/sitecustomize.py").write_text(hidden)
    words = [*SIMCLR, "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "tb"]
    path = f"{tmp_path / 'hide'}{os.pathsep}{Path(__file__).parent}"
    line = usl(tmp_path, *words, wrapper=["env", f"PYTHONPATH={path}"]).mistake
    assert "trainer.logger: TensorBoardLogger needs the package tensorboard; pip install tensorboard" in line
    assert not (tmp_path / "runs").exists(), "nothing was begun"


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/zwei Wörter/pick` and `train`: a selection, and a classifier from labels of one's own."""
    folder = tmp_path_factory.mktemp("stages")
    write_labels(folder)
    offline = partial(usl, folder, **NO_NETWORK)
    pick = ["select", "--config", "digits_random.yaml", "--run_dir", "runs/zwei Wörter/pick", "--wandb", "offline"]
    train = [*FIXMATCH, "--trainer.max_steps", "2", "--run_dir", "runs/zwei Wörter/train", "--wandb", "offline"]
    together(lambda: offline(*pick).done(), lambda: offline(*train).done())
    return folder / "runs/zwei Wörter"


def test_a_selection_is_a_picture_and_a_table(stages: Path) -> None:
    (path,) = stages.glob("pick/wandb/offline-run-*/*.wandb")
    (run,) = of_kind(path, "run")
    assert (run.run_group, run.job_type) == ("zwei Wörter", "pick")
    (row,) = history(path)
    files = path.parent / "files"
    assert (files / row["chosen.path"]).read_bytes() == (stages / "pick/chosen.png").read_bytes()
    table = json.loads((files / row["selected.path"]).read_text())
    index = json.loads((stages / "pick/labels.json").read_text())
    assert table["columns"] == ["place", "image", "index", "file", "class"]
    assert [line[0] for line in table["data"]] == list(range(1, 11))
    assert [line[2] for line in table["data"]] == index["indices"]
    assert [line[4] for line in table["data"]] == [index["classes"][label] for label in index["labels"]]


@pytest.mark.parametrize(("stage", "labels"), [("pick", "labels.json"), ("train", "../../../labels.json")])
def test_the_label_index_is_an_artifact(stages: Path, stage: str, labels: str) -> None:
    (path,) = stages.glob(f"{stage}/wandb/offline-run-*/*.wandb")
    (artifact,) = [one for one in of_kind(path, "artifact") if one.type == "label-index"]
    assert artifact.name == f"labels-zwei-W-rter-{stage}"
    assert files_of(artifact) == {"labels.json": (stages / stage / labels).read_bytes()}
    assert all(Path(entry.local_path).is_relative_to(stages / stage) for entry in artifact.manifest.contents)


def test_the_result_is_in_the_summary(stages: Path) -> None:
    for stage in ("pick", "train"):
        (path,) = stages.glob(f"{stage}/wandb/offline-run-*/*.wandb")
        updates = [item for summary in of_kind(path, "summary") for item in summary.update]
        summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}
        result = json.loads((stages / stage / "result.json").read_text())
        assert result
        for key, value in result.items():
            assert summary[f"result/{key}"] == pytest.approx(value)


class Silent(BaseHTTPRequestHandler):
    """Answers a greeting, and then nothing."""

    over = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.over.wait(60)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_a_server_that_falls_silent_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"BASE_URL": f"http://127.0.0.1:{server.server_port}", "API_KEY": "0" * 40}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("WANDB_MODE", "WANDB_SILENT", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # to be taken back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(wandb_run, "PATIENCE", 1.0)
    logger = wandb_logger("online", tmp_path / "runs/chain/stage", {"a": 1})
    assert capsys.readouterr().err == ""
    logger.log_metrics({"loss": 2.0}, 3)
    assert "cannot be reached: logged offline" in capsys.readouterr().err
    wandb_run.finish_wandb(logger, {}, None)
    Silent.over.set()
    server.shutdown()
    (path,) = tmp_path.glob("runs/chain/stage/wandb/offline-run-*/*.wandb")
    assert [(row["trainer/global_step"], row["loss"]) for row in history(path)] == [(3, 2.0)]
    (run,) = of_kind(path, "run")
    assert run.run_id == logger.version


@pytest.mark.slow
def test_an_unreachable_server_does_not_stop_a_run(tmp_path: Path) -> None:
    """Online, with a key, behind a proxy that is not there: the run is complete, and kept to be sent later."""
    words = [*SIMCLR, "--trainer.max_steps", "4", "--run_dir", "run", "--wandb"]
    done = usl(tmp_path, *words, **NO_NETWORK, WANDB_API_KEY="0" * 40).done()
    assert "usl: http://127.0.0.1:9 cannot be reached: logged offline; `wandb sync` sends run/wandb" in done.err
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows if ",loss," in row] == ["0", "1", "2", "3"]
    (path,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    assert [row["trainer/global_step"] for row in history(path) if "loss" in row] == [0, 1, 2, 3]
