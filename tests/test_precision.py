"""What a device cannot compute is refused, whatever device the tests run on."""

import pytest
import torch

from usl_lightning.errors import UslError
from usl_lightning.precision import check_precision


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
@pytest.mark.parametrize("precision", ["16-mixed", "16", 16])
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
