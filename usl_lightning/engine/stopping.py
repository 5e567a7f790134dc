"""How the processes of a run end at the same point, when any of them was asked to."""

from typing import NoReturn

import torch
from pytorch_lightning import Trainer

from usl_lightning.base.interrupt import Interruption
from usl_lightning.engine.agreement import Agreement


class Stopping:
    """Whether the run is to end.

    Args:
        interruption: the signals of this process; then also what signal another one got.

    Attributes:
        agreed: every process knows that it is.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption, self.agreed = interruption, False

    def agree(self, agreement: Agreement, step: int, *values: int, device: torch.device) -> tuple[int, ...]:
        """Exchange who was asked to stop, and other values with it; see `Agreement.most`."""
        asked, *others = agreement.most(step, self.interruption.signum or 0, *values, device=device)
        if asked:
            self.agreed, self.interruption.signum = True, asked
        return tuple(others)

    def leave(self, trainer: Trainer) -> NoReturn:
        """End the run; a launcher ends all processes as soon as one has gone, so first what remains to be done.

        Raises:
            KeyboardInterrupt: always.
        """
        if trainer.is_global_zero:
            self.interruption.requeue()
        trainer.strategy.barrier()
        raise KeyboardInterrupt
