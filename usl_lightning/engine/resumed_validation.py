"""Has Lightning begin a resumed run with the validation that the run was stopped amid."""

from pytorch_lightning import Trainer
from pytorch_lightning.loops.evaluation_loop import RestartStage
from pytorch_lightning.loops.fit_loop import _FitLoop


class _FromValidation(_FitLoop):
    """Lightning's loop ends at once, and so without a validation, where no step is left."""

    @property
    def done(self) -> bool:
        """Training is done, and the validation that comes first too."""
        validation = self.epoch_loop.val_loop
        return super().done and (validation._has_run or not validation.restarting)


def validates_after(trainer: Trainer) -> bool:
    """Whether Lightning validates once this batch is done."""
    every, done = trainer.val_check_batch, trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return trainer.enable_validation and every is not None and done % every == 0


def begin_with_validation(trainer: Trainer) -> None:
    """For the hook in which a checkpoint is loaded."""
    trainer.fit_loop.__class__ = _FromValidation


def forget_validation(trainer: Trainer, *, again: bool) -> None:
    """Count as if no validation had been broken off; for the hook in which training starts.

    Args:
        again: one is to come before the next step; else, the run validates at other steps now.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    total, begun = loop.batch_progress.total, loop.batch_progress.current
    for name in ("ready", "started", "processed", "completed"):
        setattr(total, name, getattr(total, name) - getattr(begun, name))
    loop.batch_progress.reset_on_run()
    if again:
        loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    else:
        loop.restarting = False
