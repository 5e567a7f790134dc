"""The real `usl` command in a process of its own, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent

SIMCLR = [
    "fit", "--config", "digits_simclr.yaml", "--model.backbone", "small_w16", "--model.hidden_dim", "32",
    "--model.projection_dim", "16", "--data.batch_size", "64", "--trainer.log_every_n_steps", "1",
]  # fmt: skip
FIXMATCH = [
    "fit", "--config", "digits_fixmatch.yaml", "--model.backbone", "small_w16", "--model.threshold", "0.2",
    "--data.batch_size", "8", "--data.unlabelled_ratio", "3", "--data.labels", "labels.json",
    "--trainer.log_every_n_steps", "1",
]  # fmt: skip


@dataclass
class Outcome:
    """How a command ended: its exit code (minus the signal, if one killed it) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line of a refusal; fails unless that is all there is, with exit code 2."""
        lines = [line for line in self.err.splitlines() if line.startswith(("usl: ", "usl "))]
        assert self.code == 2, self
        assert len(lines) == 1, self
        assert "Traceback" not in self.err, self
        return lines[0]

    def done(self) -> "Outcome":
        """Itself; fails unless the command succeeded."""
        assert self.code == 0, self
        return self

    def killed(self) -> "Outcome":
        """Itself; fails unless SIGKILL ended the command."""
        assert self.code == -signal.SIGKILL, self
        return self


def environment(**more: str) -> dict[str, str]:
    """One thread, so that tests can run side by side; found are `kill.py`, the package beside, what pip installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    places = f"{HERE}{os.pathsep}{HERE.parent}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places, "PATH": path, **more}


def _heed_signals() -> None:
    """A shell that started the tests in the background made them, and so their children, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def usl(folder: Path, *words: str, wrapper: Sequence[str] = (), **variables: str) -> Outcome:
    """Run `usl WORDS` in `folder`, to its end."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "usl_lightning.cli", *words],
        cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=600, check=False,
        preexec_fn=_heed_signals,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def kill(step: int, moment: str = "batch", *, stage: str | None = None, **more: str | int) -> str:
    """The option that ends a run at an exact point; see `kill.Kill`."""
    callback = {"class_path": "kill.Kill", "init_args": {"step": step, "moment": moment, **more}}
    return f"--{stage + '.' if stage else ''}trainer.callbacks={json.dumps([callback])}"


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Do independent things side by side; most of their time is the start of Python."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def write_labels(folder: Path) -> None:
    """`labels.json`: ten digits, as a plain list."""
    (folder / "labels.json").write_text(json.dumps([3, 50, 99, 200, 300, 411, 512, 613, 714, 815]))


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    """What the newest checkpoint of a stage holds."""
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Places where two nested values differ; tensors count as equal only if every bit is."""
    if type(a) is not type(b):
        return [where]
    if isinstance(a, dict):
        return [f"{where}/{key}" for key in a.keys() ^ b.keys()] + [
            place for key in a.keys() & b.keys() for place in differing(a[key], b[key], f"{where}/{key}")
        ]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [where]
        return [place for i, pair in enumerate(zip(a, b, strict=True)) for place in differing(*pair, f"{where}/{i}")]
    equal = a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if equal else [where]


def assert_same_run(run_dir: Path, reference: Path, *, but: Sequence[str] = ()) -> None:
    """The same final checkpoint, bit for bit, the same metrics in the same order, and the same result.

    Args:
        but: entries of the checkpoint that are not compared.
    """
    checkpoints = [last_checkpoint(path) for path in (run_dir, reference)]
    assert checkpoints[0]["state_dict"]
    assert checkpoints[0]["optimizer_states"][0]["state"]
    assert checkpoints[0]["lr_schedulers"]
    own, other = ({key: value for key, value in part.items() if key not in but} for part in checkpoints)
    assert differing(own, other) == []
    assert (run_dir / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()
    assert (run_dir / "result.json").read_text() == (reference / "result.json").read_text()
    assert not list((run_dir / "checkpoints").glob(".*")), "something half-written is left"
