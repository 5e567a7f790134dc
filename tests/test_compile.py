"""`compile: true` changes how a network is computed, not what."""

import shutil
from pathlib import Path

import pytest
from runs import FIXMATCH, usl, write_labels


def losses(run_dir: Path) -> list[float]:
    rows = [row.split(",") for row in (run_dir / "metrics.csv").read_text().splitlines()]
    return [float(value) for _, name, value in rows if name == "loss"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_run_has_the_same_losses(tmp_path: Path) -> None:
    """Of small steps: rounding may turn a ReLU on or off, which moves a gradient by thousandths."""
    write_labels(tmp_path)
    for name, flag in (("plain", "false"), ("compiled", "true")):
        words = ["--trainer.max_steps", "2", "--model.optimizer.lr", "0.003", "--compile", flag, "--run_dir", name]
        usl(tmp_path, *FIXMATCH, *words, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")).done()
    assert (tmp_path / "cache").exists(), "something was compiled"
    plain = losses(tmp_path / "plain")
    assert len(plain) == 2
    assert abs(plain[1] - plain[0]) > 1e-3 * plain[0], "a wrong gradient would show"
    assert losses(tmp_path / "compiled") == pytest.approx(plain, rel=1e-4)
