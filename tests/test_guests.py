"""Loggers that a configuration names may fail; the run does not."""

import logging
from pathlib import Path

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger

from usl_lightning.base.errors import UslError
from usl_lightning.engine.guests import guest


class Full(CSVLogger):
    """On a disk that is full from the third write on."""

    written = 0

    def log_metrics(self, *args: object, **kwargs: object) -> None:
        """Count."""
        self.written += 1
        if self.written > 2:
            raise OSError(28, "No space left on device")


class Nowhere(CSVLogger):
    """Of which nothing begins."""

    @property
    def experiment(self) -> None:
        """Fail."""
        raise PermissionError(13, "Permission denied")


def trained(logger: CSVLogger, folder: Path) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder, max_steps=6, limit_val_batches=0, accelerator="cpu", log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=logger,
    )  # fmt: skip

    class Logs(BoringModel):
        def training_step(self, batch: object, batch_idx: int) -> object:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss["loss"])
            return loss

    trainer.fit(Logs())
    return trainer


def test_a_logger_that_fails_is_told_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = guest(Full(str(tmp_path)))
    assert isinstance(logger, Full)
    with caplog.at_level(logging.WARNING):
        assert trained(logger, tmp_path).global_step == 6
    said = [record.getMessage() for record in caplog.records if "trainer.logger" in record.getMessage()]
    assert said == [
        "trainer.logger: Full: OSError: [Errno 28] No space left on device; the run goes on without it",
    ]
    assert logger.written == 3


def test_a_logger_that_cannot_begin_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UslError, match=r"^trainer.logger: Nowhere: cannot begin \(PermissionError: .*Permission denied\)$"
    ):
        trained(guest(Nowhere(str(tmp_path))), tmp_path)


def test_a_logger_that_works_writes_what_it_would(tmp_path: Path) -> None:
    trained(guest(CSVLogger(str(tmp_path), name="guest")), tmp_path)
    lines = (tmp_path / "guest/version_0/metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,step"
    assert [line.rpartition(",")[2] for line in lines[1:]] == list("012345")
