"""Odd things that people type: each is one line and exit code 2, and nothing is written."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from usl_lightning.base.errors import UslError
from usl_lightning.base.typed import home
from usl_lightning.cli import _mistake, main

LONG = "x" * 300
FIT = "fit --config digits_simclr.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.json").write_text("[3]")
    return tmp_path


@contextmanager
def ended_within(seconds: int) -> Iterator[None]:
    """What waits for ever is an error."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("words", "said"), [
    ([*FIT.split(), "--run_dir", ""], "--run_dir: its value is missing"),
    ([*FIT.split(), "--ckpt_path", ""], "--ckpt_path: its value is missing"),
    ([*FIT.split(), "--run_dir", LONG], "cannot be written (File name too long)"),
    ([*FIT.split(), "--extend", "maybe"], "--extend maybe: expected no value"),
    (["labels", "convert", "l.json", "--out", ""], "an empty text is no path"),
    (["labels", "convert", "l.json", "--out", f"{LONG}.csv"], "File name too long"),
    (["labels", "convert", "l.json", "--out", "/dev/null/x.csv"], "cannot be written"),
    (["report", ""], "an empty text is no path"),
    (["init", ""], "an empty text is no path"),
    (["init", LONG], "xxx"),
    (["run", "digits_quickstart.yaml", "--name", LONG], "is no name of one folder"),
    (["run", "digits_quickstart.yaml", "--name", ""], "--name: its value is missing"),
    (["run", "digits_quickstart.yaml", "--slurm", "--slurm-header", "/dev/zero"], "/dev/zero: cannot be read"),
    ([*FIT.split(), "--run_dir", "r\udcff"], "r\\udcff: is not UTF-8; rename the file or folder"),
    (["init", "\udcff"], "\\udcff: is not UTF-8"),
])  # fmt: skip
def test_odd_words(words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in err
    assert err.count("\n") == 1
    assert os.listdir(here) == ["l.json"]


@pytest.mark.parametrize(("key", "value", "said"), [
    ("model.init_from", "${nope.checkpoint}", "'nope' is no earlier stage"),
    ("model.init_from", "${train_usl.checkpoint}", "'train_usl' is no earlier stage"),
    ("model.init_from", "${pretrain.checkpont}", "no such output (did you mean 'checkpoint'?)"),
    ("model.init_from", "nope.ckpt", "model.init_from: nope.ckpt: no such file"),
    ("data.labels", "nope.json", "data.labels: nope.json: no such file"),
    ("data.dataset", "digitz", "data set 'digitz' is not known (did you mean 'digits'?)"),
    ("model.class_path", "nope.X", "model.class_path: there is no class nope.X"),
    ("model.class_path", "usl_lightning.semisup.fixmatch.FixMacth", "FixMacth (did you mean 'FixMatch'?)"),
    ("trainer.max_steps", "0", "trainer.max_steps: 0 is out of range"),
    ("trainer.max_steps", "many", "trainer.max_steps: expected int, found many"),
    ("trainer.overfit_batches", "2", "trainer.overfit_batches: 2 is a trial"),
    ("seed_everything", "-1", "seed_everything: -1 is no seed"),
    ("run_dir", "x", "run_dir: the chain sees to that"),
    ("model.backbone", "smal", "model.backbone: unknown 'smal' (did you mean 'small'?); expected one of"),
    ("model.backbone", "resnet50.a1_in2k", "model.backbone: unknown 'resnet50.a1_in2k'"),
    ("trainer.precision", "bf17", "trainer.precision: unknown 'bf17'"),
    ("trainer.num_nodes", "2", "trainer.num_nodes: 2, but nothing says where the others are; start it by srun"),
    ("foo", "1", "unknown key 'foo'"),
    ("mdel.threshold", "1", "unknown key 'mdel.threshold'"),
])  # fmt: skip
def test_a_chain_is_checked_whole(
    key: str, value: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with its fourth stage is said before its first."""
    for words in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stop:
            main(["run", "digits_usl_fixmatch.yaml", f"--train_usl.{key}={value}", *words])
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.startswith("usl: stage train_usl: ")
        assert said in err
        assert err.count("\n") == 1
        assert os.listdir(here) == ["l.json"]


@pytest.mark.parametrize("folder", ["nowhere", "l.json"])
def test_a_folder_of_images_that_is_not_there_stops_a_chain(
    folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "folder_quickstart.yaml", f"--data.dir={folder}", "--dry-run"])
    assert f" {folder}: " in capsys.readouterr().err
    assert os.listdir(here) == ["l.json"]


@pytest.mark.parametrize(("word", "said"), [
    ("--select_usl.model.budget=1438", "select_usl: model.budget: 1438 images cannot be picked from 1437"),
    ("--select_usl.data.split=tset", "select_usl: data.split: data set digits has no split 'tset' (did you"),
    ("--select_usl.model.preset=cifar1", "select_usl: model.preset: expected one of 'cifar10', 'cifar100', 'cifar', "),
    ("--train_usl.data.labels=${pretrain.labels}", "train_usl: data.labels: ${pretrain.labels}: 'pretrain' is a stage "
     "of fit; labels is what one of select leaves"),
    ("--train_usl.model.init_from=${select_usl.checkpoint}", "train_usl: model.init_from: ${select_usl.checkpoint}: "
     "'select_usl' is a stage of select; checkpoint is what one of fit leaves"),
    ("--train_usl.data.labels=${pretrain.checkpoint}", "train_usl: data.labels: ${pretrain.checkpoint}: expected "
     "what a stage leaves as labels"),
    ("--train_usl.model.init_from=${select_usl.labels}", "train_usl: model.init_from: ${select_usl.labels}: expected "
     "what a stage leaves as checkpoint"),
    ("--train_usl.model.init_from=${pretrain.checkpoint}x", "train_usl: model.init_from: ${pretrain.checkpoint}x: "
     "expected ${STAGE.OUTPUT} alone"),
    ("--train_usl.trainer.max_steps=-1", "train_usl: trainer.max_steps: -1 would never end; expected 1 or more"),
    ("--pretrain.data.batch_size=1", "pretrain: data.batch_size: 1 is a single image, with nothing to compare it to"),
    ("--train_usl.trainer.callbacks=LearningRateMonitorr", "train_usl: trainer.callbacks: unknown "
     "'LearningRateMonitorr' (did you mean 'LearningRateMonitor'?)"),
])  # fmt: skip
def test_what_is_not_there_stops_a_chain_before_its_first_stage(
    word: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "digits_usl_fixmatch.yaml", word, "--dry-run"])
    err = capsys.readouterr().err
    assert err.startswith(f"usl: stage {said}")
    assert err.count("\n") == 1


@pytest.mark.skipif(any(Path("/dev").glob("nvidia*")), reason="there is a GPU")
@pytest.mark.parametrize(("key", "value", "said"), [
    ("trainer.devices", "999", "trainer.devices: 999 processes on the "),
    ("trainer.precision", "16-mixed", "trainer.precision: 16-mixed is not for a CPU; use bf16-mixed or 32-true"),
])  # fmt: skip
def test_what_a_cpu_cannot_do_is_told_at_once(
    key: str, value: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["run", "digits_usl_fixmatch.yaml", "--dry-run"], FIT.split()):
        with pytest.raises(SystemExit) as stop:
            main([*words, f"--{key}={value}"])
        err = capsys.readouterr().err
        assert (stop.value.code, err.count("\n"), said in err) == (2, 1, True)
        assert os.listdir(here) == ["l.json"]


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.npy", "a.yaml"])
def test_what_never_ends_is_no_file(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link to a device, or a pipe that nobody writes to."""
    (here / name).symlink_to("/dev/zero")
    os.mkfifo(here / f"pipe.{name}")
    for each in (name, f"pipe.{name}"):
        words = {"a.yaml": ["run", each], "a.csv": ["labels", "import", "l.json", each]}
        with pytest.raises(SystemExit) as stop:
            main(words.get(name, ["labels", "convert", each, "--out", "o.json"]))
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["metrics.csv", "speed.csv", "overview.npz", "stage.json", ".lock", "result.json"])
def test_a_pipe_in_the_folder_of_a_run_is_not_waited_for(name: str, here: Path) -> None:
    main(["select", "--config", "digits_random.yaml", "--run_dir", "s"])
    (here / "s" / name).unlink(missing_ok=True)
    os.mkfifo(here / "s" / name)
    with ended_within(20), suppress(SystemExit):
        main(["report", "s"])
    assert (here / "s" / name).is_fifo()


@pytest.mark.parametrize("words", [
    ["import", "p.pth", "--as", "timm", "--backbone", "small_nf", "--out", "o.ckpt"],
    ["views", "--config", "digits_simclr.yaml", "--out", "p.png"], ["report", ".", "--out", "p.html"],
    ["fit", "--config", "digits_simclr.yaml", "--run_dir", "r", "--ckpt_path", "last"],
    ["fit", "--config", "digits_simclr.yaml", "--model.init_from", "p.ckpt"],
])  # fmt: skip
def test_a_pipe_is_no_file(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "r" / "checkpoints").mkdir(parents=True)
    for name in ("p.pth", "p.png", "p.html", "p.ckpt", "r/checkpoints/last.ckpt"):
        os.mkfifo(here / name)
    with ended_within(20), pytest.raises(SystemExit) as stop:
        main(words)
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_paths_are_as_typed() -> None:
    assert home("a b/~") == Path("a b/~")
    assert home("~/x") == Path.home() / "x"
    assert home("./~") == Path.cwd() / "~"  # a folder of that name; `Path` alone would make it the home folder
    with pytest.raises(UslError, match="an empty text is no path"):
        home("")


def test_what_a_disk_refuses_is_a_line_wherever_it_is_met(here: Path) -> None:
    """Such as a logger that somebody named, which cannot make its folder."""
    with pytest.raises(OSError) as error:  # noqa: PT011 - any
        (here / "l.json/x").mkdir()
    assert str(_mistake(error.value)).startswith(f"{here}/l.json/x: Not a directory; --debug tells where")
    assert _mistake(OSError("a bug of no file")) is None


@pytest.mark.parametrize("words", ["init photos", "run digits_quickstart.yaml --dry-run"])
def test_a_folder_that_is_gone_is_one_line(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as error:
        main(words.split())
    assert error.value.code == 2


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore of it"),
])  # fmt: skip
def test_too_little_memory_is_one_line(error: Exception) -> None:
    assert str(_mistake(error)).startswith("there is not enough memory; less of data.batch_size or data.image_size")
