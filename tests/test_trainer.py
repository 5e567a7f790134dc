"""What a network draws itself is a function of the step; folders of checkpoints keep the newest."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from usl_lightning.engine.checkpoints import Checkpoints
from usl_lightning.engine.trainer import KeyedRandomness


def dropout_at(step: int, batch_idx: int, *, accumulate: int = 1, rank: int = 0, seed: int = 0) -> torch.Tensor:
    trainer: Any = SimpleNamespace(global_step=step, accumulate_grad_batches=accumulate, global_rank=rank)
    KeyedRandomness(seed).on_train_batch_start(trainer, None, None, batch_idx)
    return torch.nn.functional.dropout(torch.ones(64))


def test_dropout_is_a_function_of_the_step() -> None:
    first = dropout_at(5, 5)
    dropout_at(6, 6)
    assert torch.equal(dropout_at(5, 5), first), "a resumed run draws what it drew"
    assert torch.equal(dropout_at(5, 0), first), "wherever a resume begins to count its batches"
    others = [dropout_at(6, 6), dropout_at(5, 5, rank=1), dropout_at(5, 5, seed=1), dropout_at(5, 11, accumulate=2)]
    assert not any(torch.equal(other, first) for other in others)


def test_a_run_set_back_keeps_what_it_writes(tmp_path: Path) -> None:
    """Continued from an older checkpoint, the folder holds later steps: they go, not the new one."""
    for step in (8, 16, 20):
        (tmp_path / f"step={step:08d}.ckpt").write_text(str(step))
    trainer: Any = SimpleNamespace(
        global_step=9, is_global_zero=True, save_checkpoint=lambda path, weights_only: path.write_text("9")
    )
    Checkpoints(tmp_path)._save(trainer)
    assert (tmp_path / "last.ckpt").read_text() == "9"
    assert sorted(path.name for path in tmp_path.glob("step=*")) == ["step=00000008.ckpt", "step=00000009.ckpt"]
