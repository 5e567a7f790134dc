"""The ensemble: its targets and its regression against slow ones, what a fold may know, and which network is whose."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor, nn

from usl_lightning.data.batch import ImageSpec
from usl_lightning.models.encoder import Encoder
from usl_lightning.semisup.ensemble import Ensemble, Student, Voter, soft_targets
from usl_lightning.vectors.distances import unit_rows
from usl_lightning.vectors.logistic import LogisticLearner
from usl_lightning.vectors.propagation import PropagationLearner
from usl_lightning.vectors.ridge import Ridge

C, N, M = 3, 60, 15
TRUTH = torch.arange(N) % C
ROWS = torch.arange(M)
EVERYTHING = torch.ones(1, M, dtype=torch.bool)


def features(seed: int, width: int = 5) -> Tensor:
    """Three clusters that overlap a little."""
    generator = torch.Generator().manual_seed(seed)
    return unit_rows(torch.eye(C, width)[TRUTH] + 0.5 * torch.randn(N, width, generator=generator))


def some(count: int = 4) -> Tensor:
    """Labels that are known, each class among them."""
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(count, M, generator=generator) < 0.6
    train[:, :C] = True
    return train


def voter(x: Tensor, rows: Tensor = ROWS, labels: Tensor = TRUTH[:M]) -> Voter:
    return Voter(x, rows, labels, C, 30.0, 5, 0.9)


def test_targets_are_shares_of_votes_and_labels_where_they_are_known() -> None:
    votes = torch.tensor([[0, 1, 2, 0], [0, 2, 2, 1], [0, 2, 1, 1]])
    found = soft_targets(votes, torch.tensor([3]), torch.tensor([2]), C)
    slow = np.zeros((4, C))
    for image in range(4):
        for vote in votes[:, image].tolist():
            slow[image, vote] += 1 / 3
    slow[3] = [0, 0, 1]
    np.testing.assert_allclose(found, slow, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_the_regression_is_sklearns(shape: tuple[int, int]) -> None:
    """By the smaller of the two squares."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(shape, generator=generator), torch.randn(shape[0], 3, generator=generator)
    expected = SklearnRidge(alpha=0.3, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(Ridge(x, 0.3).weights(y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["logistic", "propagation"])
def test_what_is_said_everywhere_is_what_is_learned_from_those_labels_alone(kind: str) -> None:
    def learner(rows: Tensor) -> LogisticLearner | PropagationLearner:
        if kind == "logistic":
            return LogisticLearner(features(0), rows, TRUTH[rows], C, [3.0, 30.0])
        return PropagationLearner(features(0), rows, TRUTH[rows], C, 5, [0.5, 0.9])

    train = some()
    for said, known in zip(learner(ROWS).everywhere(train, 1), train, strict=True):
        alone = learner(ROWS[known])
        torch.testing.assert_close(said.softmax(1), alone.scores(alone.head(1)).softmax(1), atol=0.02, rtol=0)
    held = learner(ROWS).held_out(train, [1])[0]
    said = torch.stack(list(learner(ROWS).everywhere(train, 1)))[:, ROWS]
    torch.testing.assert_close(held.softmax(2), said.softmax(2), atol=1e-4, rtol=0)


def test_a_student_learns_the_votes_of_known_labels() -> None:
    """Fold by fold as afresh from the labels of the fold: what is held out is nowhere in it."""
    x = torch.cat([features(0), features(1, 4)], 1)
    both = [features(0), features(1, 4)]
    student = Student(x, ROWS, TRUTH[:M], C, [voter(each) for each in both], 0.1)
    train = some()
    held = student.held_out(train)
    assert held.shape == (1, len(train), M, C)
    for scores, known in zip(held[0], train, strict=True):
        rows = ROWS[known]
        alone = Student(x, rows, TRUTH[rows], C, [voter(each, rows, TRUTH[rows]) for each in both], 0.1)
        (targets,) = alone.targets(torch.ones(1, len(rows), dtype=torch.bool))
        mean, length = x.mean(0), (x - x.mean(0)).square().sum(1).mean().sqrt()
        z = ((x - mean) / length).double()
        weights = torch.linalg.solve(z.T @ z + 0.1 * torch.eye(9).double(), z.T @ (targets - targets.mean(0)).double())
        slow = z @ weights + targets.mean(0)
        torch.testing.assert_close(scores.double(), slow[ROWS], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(alone.scores(alone.head(0)).double(), slow, atol=1e-3, rtol=1e-3)


def test_each_network_has_its_own_vote() -> None:
    spec = ImageSpec(3, 32, 32, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
    model = Ensemble(image=spec, backbone="small_w16,small", pretrained=False)
    first, second = nn.Module(), nn.Module()
    first.feature_dim, second.feature_dim = 5, 4  # type: ignore[assignment]
    model.encoder = Encoder("small_w16", spec)
    assert model.widths(9) == [model.encoder.feature_dim]
    model.encoder.apart = lambda: [first, second]  # type: ignore[assignment, method-assign, return-value]
    assert model.widths(9) == [5, 4]
    x = torch.cat([features(0), features(1, 4)], 1) / 2**0.5
    (student,) = model.learners(x, ROWS, TRUTH[:M])
    assert isinstance(student, Student)
    for made, expected in zip(student.voters, (features(0), features(1, 4)), strict=True):
        own = torch.stack(list(made.votes(EVERYTHING)))
        assert torch.equal(own, torch.stack(list(Voter(expected, ROWS, TRUTH[:M], C, 30.0, 10, 0.9).votes(EVERYTHING))))
    logits = model.learn_from(x, ROWS, TRUTH[:M], seed=0)
    assert float((logits.argmax(1) == TRUTH).float().mean()) > 0.8
    assert model.judgement is not None
    assert model.judgement.estimate is not None
