"""What held-out labels choose of two learners."""

from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from usl_lightning.evaluation.folds import stratified_folds
from usl_lightning.evaluation.trial import Judgement, Trial


class Told:
    """A learner that says the same whatever it learns from."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def held_out(self, train: Tensor, settings: Sequence[int] | None = None) -> Tensor:
        return self.logits.expand(1, len(train), *self.logits.shape)

    def head(self, setting: int) -> nn.Module:
        return nn.Identity()

    def scores(self, head: nn.Module) -> Tensor:
        return self.logits


@pytest.mark.parametrize("guesses", [True, False])
def test_labels_choose_the_better_of_two_and_leave_them_alike_without_a_reason(guesses: bool) -> None:
    """One learner knows four labels in five; the other guesses, or knows other four in five."""
    labels = torch.arange(200) % 4
    folds = stratified_folds(labels, 10, 2, seed=0)
    one = torch.nn.functional.one_hot(labels, 4).float() * 4
    other = 4 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) if guesses else one.clone()
    one[::5], other[1::5] = 0.0, 0.0
    trial = Trial([Told(one), Told(other)], labels, folds, (1.0, 1.0))
    assert trial.weights.tolist() == ([1.0, 0.0] if guesses else [0.5, 0.5])
    judgement = trial.judge(torch.full((50,), 0.5), torch.full((200,), 1 / 200), 200)
    assert judgement.weights == trial.weights.tolist()
    assert Judgement.of(asdict(judgement)) == judgement
