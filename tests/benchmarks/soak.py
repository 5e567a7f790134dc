"""A chain of 2,000 steps under a random killer: does it end as it would have, and does memory grow?

    python tests/benchmarks/soak.py --steps 1000 --every 4

Pretrains, selects and trains on digits, `--steps` steps each. The chain runs once undisturbed, while its memory is
looked at, and once under a killer that ends it (SIGKILL, SIGTERM or Ctrl-C, all of it or only the stage) up to
`--every` seconds after it has begun to make progress; then it is started again. Writes results/soak.json.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import machine

HERE = Path(__file__).parent
TRAINED = ("pretrain", "train")


def write_chain(folder: Path, steps: int) -> None:
    """`soak.yaml`: SimCLR, USL and FixMatch on small networks."""
    small = {
        "model.backbone": "small_w16", "trainer.max_steps": steps, "trainer.val_check_interval": max(1, steps // 4),
        "checkpoint.every_steps": max(1, steps // 100), "trainer.log_every_n_steps": 1,
    }  # fmt: skip
    stages = [
        {"name": "pretrain", "command": "fit", "config": "digits_simclr.yaml", "set": {**small, "data.batch_size": 64}},
        {
            "name": "select",
            "command": "select",
            "config": "digits_usl.yaml",
            "set": {"model.init_from": "${pretrain.checkpoint}"},
        },
        {
            "name": "train",
            "command": "fit",
            "config": "digits_fixmatch.yaml",
            "set": {
                **small,
                "data.batch_size": 8,
                "data.unlabelled_ratio": 3,
                "data.labels": "${select.labels}",
                "model.init_from": "${pretrain.checkpoint}",
            },
        },
    ]
    (folder / "soak.yaml").write_text(yaml.safe_dump({"stages": stages}))


@contextmanager
def running(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the chain, or start it again, in a session of its own, of which nothing is left in the end."""
    command = [sys.executable, "-m", "usl_lightning.cli", "run", "soak.yaml", "--name", name]
    with open(folder / f"{name}.log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def progress(run: Path) -> float:
    """When a metric was last noted in any stage."""
    return max((path.stat().st_mtime for path in run.glob("*/metrics.csv")), default=0.0)


def child_of(process: subprocess.Popen[bytes]) -> int | None:
    """The stage that a chain is running."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def kill_some_of(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """End a chain as schedulers, users and machines do; all of its processes are gone afterwards."""
    how = chance.choice(["kill", "kill", "kill stage", "term", "interrupt"])
    if how == "kill stage" and (child := child_of(process)):
        os.kill(child, signal.SIGKILL)
    elif how in ("term", "interrupt"):
        process.send_signal(signal.SIGTERM if how == "term" else signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return how


def disturbed(folder: Path, name: str, every: float, seed: int, kills: int) -> list[str]:
    """Run the chain to its end under the killer.

    Args:
        every: seconds of progress it is left at most.
        kills: after these it is left alone.

    Returns:
        How it was ended each time.
    """
    chance, done, run = random.Random(seed), [], folder / "runs" / name
    while True:
        before = progress(run)
        with running(folder, name) as process:
            impatient = time.monotonic() + (chance.uniform(0, 15) if chance.random() < 0.2 else 600)
            while process.poll() is None and progress(run) == before and time.monotonic() < impatient:
                time.sleep(0.02)
            try:
                process.wait(chance.uniform(0, every) if len(done) < kills else None)
            except subprocess.TimeoutExpired:
                done.append(kill_some_of(process, chance))
                continue
        if process.returncode:
            raise SystemExit((folder / f"{name}.log").read_text()[-3000:])
        return done


def rss_mib(pid: int) -> float | None:
    """Memory of a process; None if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


def undisturbed(folder: Path, name: str, steps: int) -> dict[str, float]:
    """Run the chain; for each trained stage the growth of its memory in MiB per 1,000 steps.

    The first half of a stage is left out: libraries are still being loaded, and the first validations find the memory
    they need from then on.
    """
    looks = dict[str, list[tuple[int, float]]]()
    with running(folder, name) as process:
        while process.poll() is None:
            _look(folder / "runs" / name, child_of(process), steps, looks)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit((folder / f"{name}.log").read_text()[-3000:])
    return {stage: slope(points) for stage, points in looks.items()}


def _look(run: Path, stage_process: int | None, steps: int, looks: dict[str, list[tuple[int, float]]]) -> None:
    """Note step and memory of the stage that is being trained."""
    memory = rss_mib(stage_process) if stage_process else None
    for stage in TRAINED:
        path = run / stage / "metrics.csv"
        if memory is None or not path.exists() or (run / stage / "result.json").exists():
            continue
        cells = path.read_text().splitlines()[-1].split(",")
        if len(cells) == 3 and cells[0].isdigit() and int(cells[0]) > steps // 2:
            looks.setdefault(stage, []).append((int(cells[0]), memory))


def slope(points: list[tuple[int, float]]) -> float:
    """Least squares: MiB per 1,000 steps."""
    steps, memory = (torch.tensor(column, dtype=torch.double) for column in zip(*points, strict=True))
    steps = steps - steps.mean()
    return float(1000 * (steps * memory).sum() / (steps * steps).sum().clamp(min=1))


def unequal(folder: Path, name: str, other: str) -> list[str]:
    """What the two runs' last states differ in."""
    wrong = []
    for stage in TRAINED:
        own, reference = (
            torch.load(folder / "runs" / run / stage / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for run in (name, other)
        )
        wrong += [f"{stage}: {key}" for key, value in reference.items() if not torch.equal(own[key], value)]
        results = [(folder / "runs" / run / stage / "result.json").read_text() for run in (name, other)]
        wrong += [f"{stage}: result.json"] * (results[0] != results[1])
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000, help="of each of the two trained stages")
    parser.add_argument("--every", type=float, default=4.0, help="seconds of progress between two kills, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the killer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_chain(folder, arguments.steps)
        growth = undisturbed(folder, "alone", arguments.steps)
        kills = disturbed(folder, "killed", arguments.every, arguments.seed, 10**6)
        wrong = unequal(folder, "killed", "alone")
    counts = {how: kills.count(how) for how in sorted(set(kills))}
    report: dict[str, Any] = {
        "machine": machine(), "steps": 2 * arguments.steps, "kills": counts, "differs_in": wrong,
        "rss_mib_per_1000_steps": {stage: round(value, 2) for stage, value in growth.items()},
    }  # fmt: skip
    path = HERE / "results" / "soak.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
