"""Published label indices are told from those of other images."""

import hashlib
import logging
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from usl_lightning.base.configs import find_labels
from usl_lightning.base.errors import UslError
from usl_lightning.data.images import originals
from usl_lightning.stage.given import check_files
from usl_lightning.stage.words import StageCommand

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


def check(index: str, folder: Path, config: str = "cifar10_random.yaml") -> None:
    words = ["--config", config, f"--data.dir={folder}", f"--model.keep_from={index}", "--model.budget=500"]
    StageCommand.parse("select", words).check()


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in BATCHES:
        (folder / name).write_text(name)
    return tmp_path


def test_the_originals_are_torchvisions() -> None:
    for name, known in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        assert originals.ORIGINALS[name]["train"] == tuple(md5 for _, md5 in known.train_list)


def test_other_files_are_told_once(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = tuple(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in BATCHES)
    monkeypatch.setattr(originals, "ORIGINALS", {"cifar10": {"train": real}})
    check("cifar10_usl_seed1.json", cifar)
    assert not caplog.records
    (cifar / "cifar-10-batches-py" / "data_batch_3").write_text("another")
    with caplog.at_level(logging.WARNING):
        check("cifar10_usl_seed1.json", cifar)
    assert len(caplog.records) == 1
    assert "data_batch_3 is another file" in caplog.text


@pytest.mark.parametrize(("index", "config"), [
    ("cifar100_usl.json", "cifar10_random.yaml"), ("cifar10_uslt.json", "fashion_mnist_random.yaml"),
])  # fmt: skip
def test_the_index_of_another_set_is_refused(index: str, config: str, cifar: Path) -> None:
    with pytest.raises(UslError, match=f"model.keep_from: {index}: positions in cifar"):
        check(index, cifar, config)
    flat = {"data.dataset": config.removesuffix("_random.yaml"), "model.keep_from": find_labels(index)}
    with pytest.raises(UslError, match=f"model.keep_from: {index}: positions in cifar"):
        check_files(flat)  # as --dry-run does


def test_a_set_that_is_not_there_is_left_to_its_reader(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check("cifar10_usl_seed1.json", tmp_path)
    assert not caplog.records
