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


def test_nothing_is_foretold_of_more_labels_than_there_are_images_for(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(60) % 3
    one = torch.nn.functional.one_hot(labels, 3).float()
    trial = Trial([Told(one)], labels, stratified_folds(labels, 5, 1, seed=0), (1.0,))
    monkeypatch.setattr(Trial, "_with_more", lambda self, estimate: 0.9)
    for images, told in ((40, 0.9), (39, None)):
        assert trial.judge(torch.full((images,), 0.8), torch.full((60,), 1 / 60), 60).with_more == told
