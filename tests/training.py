"""What every method must pass: it resumes exactly, survives any kill, and two processes train as one.

def model(data: ImageData) -> SimCLR: ...      # module level: other processes import it

def test_resume(tmp_path): assert_resumes_exactly(model, digits, tmp_path)
def test_kills(tmp_path): assert_survives_kills(model, digits, tmp_path)
def test_processes(tmp_path): assert_two_processes_agree(model, digits, tmp_path)   # norm-free network
"""

import multiprocessing
import os
import random
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from kill import Kill
from pytorch_lightning import Callback, LightningModule
from runs import differing

from usl_lightning.base.interrupt import Interruption
from usl_lightning.data.images.opening import open_source
from usl_lightning.data.images.source import dataset_id
from usl_lightning.data.modules import ImageData, SemiSupervisedData
from usl_lightning.engine.checkpoints import Checkpoints
from usl_lightning.engine.logs import MetricsCSV, Progress
from usl_lightning.engine.not_finite import StopOnNaN
from usl_lightning.engine.processes import Processes
from usl_lightning.engine.trainer import KeyedRandomness, Trainer
from usl_lightning.labels import LabelIndex

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["training"])  # importing Lightning takes longer than what the children do

TOGETHER = "cuda" if torch.cuda.device_count() > 1 else "cpu"
"""Where two processes train as one."""

MakeModel = Callable[[ImageData], LightningModule]
MakeData = Callable[[], ImageData]


def digits() -> ImageData:
    """The 1,437 training digits, 32 a step."""
    return ImageData("digits", batch_size=32, seed=3)


def few_labels() -> SemiSupervisedData:
    """The same, 20 of them labelled; 8 labelled and 24 unlabelled a step."""
    source = open_source("digits", "train")
    labels = tuple(source.labels[:20].tolist())
    path = Path(tempfile.mkdtemp()) / "labels.json"
    LabelIndex(dataset_id(source), {}, tuple(range(20)), labels, source.classes).write(path)
    return SemiSupervisedData(str(path), batch_size=8, unlabelled_ratio=3, dataset="digits", seed=3)


class StopError(Exception):
    """A run was stopped on purpose."""


class Stop(Callback):
    """Ends a run before the step after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Nothing of the next step has happened yet."""
        if trainer.global_step == self.step:
            raise StopError


class FirstGradient(Callback):
    """Keeps the gradient of the first step, as the optimizer gets it, in `gradient.pt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        """Of the global batch: the processes have averaged theirs."""
        if trainer.global_step == 0 and trainer.is_global_zero:
            gradient = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            torch.save(gradient, self.folder / "gradient.pt")


def train(
    make_model: MakeModel,
    make_data: MakeData,
    folder: Path,
    steps: int,
    *,
    stop: Callback | None = None,
    every_steps: int = 1,
    interruption: Interruption | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train for `steps` steps, from the newest checkpoint in `folder` if there is one.

    Args:
        stop: what may end the run before.
        every_steps: between two checkpoints.
        interruption: takes the signals that ask the run to stop.
        options: of the Trainer.

    Returns:
        The last checkpoint.
    """
    torch.manual_seed(0)  # of the initial weights
    torch.backends.cudnn.allow_tf32 = False
    folder.mkdir(exist_ok=True, parents=True)
    data = make_data()
    model = make_model(data)
    options = {"accelerator": "cpu", "devices": 1, "val_check_interval": 4, "log_every_n_steps": 1, **options}
    trainer = Trainer(
        max_epochs=-1, max_steps=steps, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, logger=MetricsCSV(folder / "metrics.csv"),
        callbacks=[
            KeyedRandomness(data.seed), StopOnNaN(),
            Checkpoints(folder / "checkpoints", every_steps=every_steps, interruption=interruption),
            Progress(""),
            Processes(check_every=1), FirstGradient(folder),
            *([] if stop is None else [stop]),
        ],
        **options,
    )  # fmt: skip
    last = folder / "checkpoints" / "last.ckpt"
    with suppress(StopError):
        trainer.fit(model, datamodule=data, ckpt_path=last if last.exists() else None)
    return torch.load(last, weights_only=True)


def assert_resumes_exactly(
    make_model: MakeModel,
    make_data: MakeData,
    folder: Path,
    *,
    steps: int = 8,
    stops: tuple[int, ...] = (1, 3, 6),
    **options: Any,
) -> None:
    """A run stopped and continued at each of `stops` ends, bit for bit, in the state of one that was not.

    Args:
        options: of the Trainer.
    """
    reference = train(make_model, make_data, folder / "straight", steps, **options)
    for stop in (*stops, None):
        callback = None if stop is None else Stop(stop)
        checkpoint = train(make_model, make_data, folder / "stopped", steps, stop=callback, **options)
        assert checkpoint["global_step"] == (stop or steps)
    _assert_same(checkpoint, reference)
    own, other = ((folder / name / "metrics.csv").read_text() for name in ("stopped", "straight"))
    assert len(_losses(own)) == steps
    assert own == other


def assert_survives_kills(make_model: MakeModel, make_data: MakeData, folder: Path, **options: Any) -> None:
    """`kill -9` at five random points, two of them amid a save: the state of a run nobody touched, bit for bit.

    Args:
        options: of the Trainer.
    """
    dice = random.Random(make_model.__module__)
    points = {dice.choice([2, 4]): "write", dice.choice([6, 8]): "rename"}
    others = dice.sample([step for step in range(1, 12) if step not in points], 3)
    points |= dict.fromkeys(others, "batch")
    run = (make_model, make_data, folder / "killed", 12)
    for step in sorted(points):
        assert _ends(_child(*run, stop=Kill(step, points[step]), every_steps=2, **options)) == -signal.SIGKILL, step
    assert _ends(_child(*run, every_steps=2, **options)) == 0
    reference = train(make_model, make_data, folder / "straight", 12, every_steps=2, **options)
    _assert_same(torch.load(folder / "killed" / "checkpoints" / "last.ckpt", weights_only=True), reference)
    own, other = ((folder / name / "metrics.csv").read_text() for name in ("killed", "straight"))
    assert len(_losses(own)) == 12
    assert own == other
    assert not list((folder / "killed" / "checkpoints").glob(".*")), "something half-written is left"


def _assert_same(checkpoint: dict[str, Any], reference: dict[str, Any]) -> None:
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    assert differing({k: checkpoint[k] for k in parts}, {k: reference[k] for k in parts}) == []


def _child(*arguments: Any, **options: Any) -> BaseProcess:
    process = CHILDREN.Process(target=_train_alone, args=arguments, kwargs=options)
    process.start()
    return process


def _train_alone(*arguments: Any, **options: Any) -> None:
    torch.set_num_threads(1)
    train(*arguments, **options)


def _ends(process: BaseProcess) -> int | None:
    process.join(300)
    return process.exitcode


def assert_two_processes_agree(
    make_model: MakeModel, make_data: MakeData, folder: Path, *, steps: int = 30, tolerance: float = 1e-4
) -> None:
    """Two processes, on two GPUs where there are any, with the same global batch: the losses and final state of one.

    On the way there are five `kill -9` at random steps (fewer in a run of few), after each of which they go on from the
    last whole checkpoint: of both processes twice; of either one, and of the one that writes amid a checkpoint, which
    end the other.
    Each loss and, in norm, each weight and buffer is within `tolerance`, relative; the first loss and its gradient,
    before errors can grow, within 1e-5.
    The two hold the same weights and buffers, bit for bit, after every step (`Processes`).
    The network must be free of batch norm, whose statistics on the CPU are those of each process.
    """
    assert _ends(_child(make_model, make_data, folder / "one", steps, accelerator=TOGETHER)) == 0
    arguments = (make_model, make_data, folder / "two", steps)
    first, last = (folder / name / "checkpoints" / "last.ckpt" for name in ("one", "two"))
    dice = random.Random(make_model.__module__)
    kills = dice.sample([("batch", 0), ("batch", 1), ("write", 0), ("batch", None), ("batch", None)], 5)
    at = sorted(dice.sample(range(2, steps), min(5, steps - 2)))
    for step, (moment, rank) in zip(at, kills, strict=False):
        ends = _pair(*arguments, stop=Kill(step, moment, rank=rank), accelerator=TOGETHER)
        victims = (0, 1) if rank is None else (rank,)
        for process, end in enumerate(ends):
            assert end == -signal.SIGKILL if process in victims else end not in (0, None), (step, moment, rank, ends)
        assert last.resolve().name == f"step={step - (moment == 'write'):08d}.ckpt"
    assert _pair(*arguments, accelerator=TOGETHER) == [0, 0]
    one, two = (torch.load(path, weights_only=True) for path in (first, last))
    losses = [[float(v) for _, v in _losses((folder / name / "metrics.csv").read_text())] for name in ("two", "one")]
    assert len(losses[1]) == steps
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    ours, theirs = (torch.load(folder / name / "gradient.pt") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)
    for name, value in one["state_dict"].items():
        own = two["state_dict"][name]
        if value.is_floating_point():
            assert float((own - value).norm()) <= tolerance * float(value.norm()) + 1e-7, name
        else:
            assert torch.equal(own, value), name


def _pair(*arguments: Any, **options: Any) -> list[int | None]:
    """Exit codes of two processes that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [CHILDREN.Process(target=_rank, args=(rank, port, arguments, options)) for rank in range(2)]
    for process in ranks:
        process.start()
    return [_ends(process) for process in ranks]


def _rank(rank: int, port: int, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    _train_alone(*arguments, devices=2, strategy="ddp", **options)


def _losses(csv: str) -> list[tuple[str, str]]:
    rows = [row.split(",") for row in csv.splitlines()[1:]]
    return [(step, value) for step, name, value in rows if name == "loss"]
