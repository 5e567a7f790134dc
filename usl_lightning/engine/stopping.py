"""How the processes of a run end at the same point, when any of them was asked to."""

from typing import NoReturn

import torch
from pytorch_lightning import Trainer

from usl_lightning.base.interrupt import Interruption
from usl_lightning.engine.agreement import Agreement, fewest


class Stopping:
    """Whether the run is to end: the processes tell each other after steps, and before the batches of a validation.

    Args:
        interruption: the signals of this process; then also what signal another one got.

    Attributes:
        agreed: every process knows that it is.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption, self.agreed = interruption, False
        self._steps = self._batches = Agreement()
        self._turns = iter(range(0))

    def begin_steps(self, step: int) -> None:
        """Training starts, with as many steps done."""
        self._steps = Agreement(step)

    def after_step(self, step: int, late: bool, device: torch.device) -> bool:
        """Exchange who was asked to stop; whether any process is late, as far as they have talked (`Agreement`)."""
        (any_late,) = self._exchange(self._steps, step, int(late), device=device)
        return bool(any_late)

    def begin_batches(self, count: int, device: torch.device) -> None:
        """A validation starts, of as many batches on this process."""
        self._batches = Agreement()
        self._turns = iter(range(fewest(count, device=device)))

    def before_batch(self, device: torch.device) -> None:
        """Exchange who was asked to stop; some processes have one batch more, at which the others do not answer."""
        turn = next(self._turns, None)
        if turn is not None:
            self._exchange(self._batches, turn, device=device)

    def exchange(self, device: torch.device) -> None:
        """Exchange at once who was asked to stop, at a point that all processes reach."""
        self._exchange(Agreement(), 1, device=device)

    def _exchange(self, agreement: Agreement, turn: int, *values: int, device: torch.device) -> tuple[int, ...]:
        asked, *others = agreement.most(turn, self.interruption.signum or 0, *values, device=device)
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
