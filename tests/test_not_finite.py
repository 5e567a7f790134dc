"""A run into a loss that is not a number ends, names the step, and leaves a checkpoint to continue from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import digits

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import Weak
from usl_lightning.engine.checkpoints import Checkpoints
from usl_lightning.engine.trainer import KeyedRandomness, StopOnNaN, Trainer
from usl_lightning.pretrain.simclr import SimCLR


class Breaks(SimCLR):
    """The loss of one batch, counted from 0, is not a number."""

    bad_batch = -1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if batch_idx == self.bad_batch else loss


def model(data: ImageData, bad_batch: int = -1) -> Breaks:
    torch.manual_seed(0)
    made = Breaks(
        data.spec, Weak(), Optimization(), backbone="small_nf", hidden_dim=8, projection_dim=8, projection_norm=False
    )
    made.bad_batch = bad_batch
    return made


def fit(made: Breaks, data: ImageData, folder: Path, *, every: int = 50, accumulate: int = 1) -> Trainer:
    """Up to 10 steps, saved after every fifth; continued from the last of them."""
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=10, limit_val_batches=0, use_distributed_sampler=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False,
        accumulate_grad_batches=accumulate,
        callbacks=[KeyedRandomness(0), StopOnNaN(every), Checkpoints(folder, every_steps=5)],
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(made, datamodule=data, ckpt_path=last if last.exists() else None)
    return trainer


@pytest.mark.parametrize("every", [50, 9], ids=["seen at a save", "seen at a look"])
def test_the_step_is_named_and_the_run_can_go_on_from_before(every: int, tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(UslError, match=r"^step 7: the loss is not finite; the last good checkpoint is kept") as error:
        fit(model(data, bad_batch=6), data, tmp_path, every=every)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.glob("step=*")] == ["step=00000005.ckpt"]
    whole = model(data)
    assert fit(whole, data, tmp_path).global_step == 10
    assert all(bool(value.isfinite().all()) for value in whole.state_dict().values())


@pytest.mark.parametrize("bad_batch", [12, 13])
def test_accumulated_batches_are_of_one_step(bad_batch: int, tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(UslError, match=r"^step 7: the loss is not finite"):
        fit(model(data, bad_batch), data, tmp_path, accumulate=2)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    data = digits()
    made = model(data)
    with torch.no_grad():
        made.encoder.net.bias = torch.nn.Parameter(torch.full((1,), torch.inf))  # in no loss
    with pytest.raises(UslError, match=r"^step 5: encoder\.net\.bias is not finite"):
        fit(made, data, tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))
