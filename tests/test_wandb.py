"""`--wandb offline`: a complete run directory without a network, and a resume that goes on in the same run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import SIMCLR, kill, usl
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
NO_NETWORK = dict.fromkeys(("https_proxy", "http_proxy", "WANDB_BASE_URL"), "http://127.0.0.1:9")


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


def history(path: Path) -> list[dict[str, Any]]:
    rows = (record.history.item for record in records(path) if record.WhichOneof("record_type") == "history")
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was told to stop after step 5, and its continuation."""
    folder = tmp_path_factory.mktemp("wandb")
    words = [*SIMCLR, "--trainer.max_steps", "8", "--checkpoint.every_steps", "4", "--trainer.val_check_interval", "4"]
    words += ["--run_dir", "runs/chain/stage", "--wandb", "offline"]
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
