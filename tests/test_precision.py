"""What a device cannot compute is refused, whatever device the tests run on; in what is accepted, methods train."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins import MixedPrecision
from runs import differing
from torch import nn
from training import MakeData, MakeModel, Stop, digits, few_labels, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.device import full_precision
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import FixMatchStrong, SmallGreyView, Weak
from usl_lightning.engine.trainer import check_averages, check_precision
from usl_lightning.models.ema import EMA
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.semisup.fixmatch import FixMatch


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "16", 16])
def test_half_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch, precision: str | int, accelerator: str) -> None:
    pretend(monkeypatch, cuda=accelerator == "cpu")
    with pytest.raises(UslError, match=f"trainer.precision: {precision} is not for a CPU; use bf16-mixed or 32-true"):
        check_precision(precision, accelerator)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_bfloat16_on_an_older_gpu(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    pretend(monkeypatch, cuda=True)
    with pytest.raises(UslError, match="Tesla T4 does not compute in bf16-mixed; use 16-mixed or 32-true"):
        check_precision("bf16-mixed", accelerator)


def test_double_precision_on_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, mps=True)
    with pytest.raises(UslError, match="Apple GPUs do not compute in 64-true"):
        check_precision("64-true", "auto")
    check_precision("64-true", "cpu")


@pytest.mark.parametrize("precision", [None, "32-true", "bf16-mixed", "64-true"])
def test_what_every_cpu_can_do(monkeypatch: pytest.MonkeyPatch, precision: str | None) -> None:
    pretend(monkeypatch)
    check_precision(precision, "auto")


def test_what_a_newer_gpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, bf16=True)
    for precision in ("bf16-mixed", "16-mixed", "32-true", "64-true"):
        check_precision(precision, "auto")


# Moving averages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "precision"), [(0.999, "bf16-true"), (0.97, "bf16-true"), (0.997, "16-true")])
def test_an_average_that_would_stand_still(decay: float, precision: str) -> None:
    average = EMA(nn.Linear(4, 4), decay).to(torch.bfloat16 if precision == "bf16-true" else torch.float16)
    with pytest.raises(
        UslError, match=rf"average of the weights in steps of 0\.0\d+ would .* {precision}; use .*-mixed"
    ):
        check_averages(average, precision)
    online = nn.Linear(4, 4).to(average.module.weight.dtype)
    with torch.no_grad():
        online.weight.copy_(average.module.weight * 1.05)
    before = average.module.weight.clone()
    average.update(online)
    assert torch.equal(average.module.weight, before), "five percent away, and no step is taken"


def test_averages_that_move() -> None:
    check_averages(EMA(nn.Linear(4, 4), 0.9), "bf16-true")
    check_averages(EMA(nn.Linear(4, 4), 0.0), "bf16-true")
    for precision in ("bf16-mixed", "32-true", "64-true", None):
        check_averages(EMA(nn.Linear(4, 4), 0.999), precision)
    check_averages(nn.BatchNorm2d(3), "bf16-true")
    with pytest.raises(UslError, match=r"batch norm's statistics in steps of 0\.001 would stand still in bf16-true"):
        check_averages(nn.BatchNorm2d(3, momentum=0.001), "bf16-true")


def test_losses_are_of_32_bits_at_least() -> None:
    kinds = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float64: torch.float64}
    assert {kind: full_precision(torch.ones(2, dtype=kind)).dtype for kind in kinds} == kinds


# Training ------------------------------------------------------------------------------------------------


def fixmatch(data: ImageData) -> LightningModule:
    return FixMatch(
        data.spec, Weak(), FixMatchStrong(), Optimization(), backbone="small_w16", threshold=0.1, ema_decay=0.9
    )


def simclr(data: ImageData) -> LightningModule:
    return SimCLR(data.spec, SmallGreyView(), Optimization(), backbone="small_w16", hidden_dim=32, projection_dim=16)


@pytest.mark.parametrize(("model", "data"), [(fixmatch, few_labels), (simclr, digits)])
def test_accepted_precisions_train_alike(model: MakeModel, data: MakeData, tmp_path: Path) -> None:
    """Two steps and a validation in each; the first loss is that of full precision, as far as the bits go."""
    losses = {}
    for precision in ("32-true", "64-true", "bf16-true", "bf16-mixed"):
        checkpoint = train(model, data, tmp_path / precision, 2, precision=precision, val_check_interval=2)
        kinds = {value.dtype for value in checkpoint["state_dict"].values() if value.is_floating_point()}
        assert kinds == {{"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)}
        rows = [row.split(",") for row in (tmp_path / precision / "metrics.csv").read_text().splitlines()]
        losses[precision] = [float(value) for _, name, value in rows if name == "loss"]
        assert len(losses[precision]) == 2
        assert all(map(math.isfinite, losses[precision]))
    full = losses["32-true"]
    assert losses["64-true"] == pytest.approx(full, rel=1e-4)
    assert losses["64-true"] != full
    assert losses["bf16-true"] == pytest.approx(full, rel=0.1)
    assert losses["bf16-mixed"] == pytest.approx(full, rel=0.1)


@pytest.mark.parametrize(("model", "data"), [(fixmatch, few_labels), (simclr, digits)])
def test_the_scale_of_half_precision_losses_resumes(model: MakeModel, data: MakeData, tmp_path: Path) -> None:
    """`16-mixed` with its scaler on the CPU, where the command line refuses it: it grows, also over a stop."""

    def run(folder: Path, stop: Stop | None = None) -> dict[str, Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        return train(model, data, folder, 8, stop=stop, plugins=[plugin])

    straight = run(tmp_path / "straight")
    stopped = run(tmp_path / "stopped", Stop(4))
    assert stopped["MixedPrecision"]["_growth_tracker"] == 1
    stopped = run(tmp_path / "stopped")
    assert stopped["MixedPrecision"] == straight["MixedPrecision"]
    assert straight["MixedPrecision"]["scale"] == 64.0
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differing(stopped[part], straight[part]) == []
