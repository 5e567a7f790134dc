"""Label propagation against the dense closed form, and what is known of it without solving."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from usl_lightning.base.errors import UslError
from usl_lightning.vectors.propagation import (
    ALPHAS,
    NeighborHead,
    PropagationLearner,
    balanced,
    centred,
    log_shares,
    propagate,
    propagation_graph,
)


def digits(n: int = 300) -> tuple[Tensor, Tensor]:
    """Unit rows and labels."""
    x, y = load_digits(return_X_y=True)
    return normalize(torch.from_numpy(x[:n]).float()), torch.from_numpy(y[:n]).long()


def dense(x: Tensor, k: int) -> np.ndarray:
    """W + Wᵀ as in Iscen et al., from scikit-learn's neighbours."""
    rows = x.double().numpy()
    found = NearestNeighbors(n_neighbors=k + 1).fit(rows).kneighbors(rows, return_distance=False)[:, 1:]
    weights = np.zeros((len(rows), len(rows)))
    for i, neighbors in enumerate(found):
        weights[i, neighbors] = np.maximum(rows[neighbors] @ rows[i], 0) ** 3
    return weights + weights.T


def test_the_graph_is_the_papers() -> None:
    x, _ = digits(120)
    weights = dense(x, 6)
    degrees = weights.sum(1)
    graph = propagation_graph(x, 6)
    np.testing.assert_allclose(graph.degrees.numpy(), degrees, rtol=1e-5)
    expected = weights / np.sqrt(np.outer(degrees, degrees))
    np.testing.assert_allclose(graph.matrix.to_dense().numpy(), expected, atol=1e-6)


def test_the_solution_is_that_of_the_dense_system() -> None:
    x, y = digits(150)
    graph = propagation_graph(x, 5)
    sources = torch.zeros(150, 10)
    sources[:20] = one_hot(y[:20], 10).float()
    system = torch.eye(150).double() - ALPHAS[1] * graph.matrix.to_dense().double()
    expected = torch.linalg.solve(system, sources.double())
    found = propagate(graph, sources, ALPHAS[1], tolerance=1e-7)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_it_spreads_as_scikit_learns() -> None:
    """Whose rule is another normalisation of the same walk: the classes of nearly all points are the same."""
    x, y = digits(400)
    weights = dense(x, 5)
    known = np.full(400, -1)
    known[:40] = y[:40].numpy()
    theirs = LabelSpreading(kernel=lambda a, b: weights, alpha=ALPHAS[1], max_iter=2000, tol=1e-8).fit(x.numpy(), known)
    sources = torch.zeros(400, 10)
    sources[:40] = one_hot(y[:40], 10).float()
    ours = propagate(propagation_graph(x, 5), sources, ALPHAS[1]).argmax(1).numpy()
    assert (ours == theirs.transduction_).mean() > 0.98


def test_columns_do_not_depend_on_each_other() -> None:
    """So that one solution for each label has every fold in it."""
    x, y = digits(200)
    rows = torch.arange(0, 200, 8)
    learner = PropagationLearner(x, rows, y[rows], 10, 5)
    train = torch.ones(2, len(rows), dtype=torch.bool)
    train[1, ::2] = False
    held = learner.held_out(train)
    assert held.shape == (2, 2, len(rows), 10)
    for setting, alpha in enumerate(ALPHAS):
        for each in range(2):
            sources = torch.zeros(200, 10)
            sources[rows] = balanced(y[rows], train[each : each + 1], 10)[0]
            expected = log_shares(propagate(learner.graph, sources, alpha, tolerance=1e-6)[rows])
            torch.testing.assert_close(held[setting, each].exp(), expected.exp(), atol=2e-3, rtol=0)
    assert torch.equal(learner.held_out(train, [1])[0], held[1])


def test_balanced_columns_sum_up_to_one() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    columns = balanced(labels, torch.tensor([[True, True, False, True]]), 3)
    assert columns[0].tolist() == [[0.5, 0, 0], [0.5, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_shares_of_nothing_are_all_alike() -> None:
    shares = log_shares(torch.tensor([[0.0, 0.0], [-1.0, 3.0], [1.0, 3.0]])).exp()
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.5], [1e-4, 1.0], [0.25, 0.75]]))


def test_new_points_take_what_the_equation_gives_them() -> None:
    """A point of the set, left out and then looked at, gets nearly what it had in it."""
    x, y = digits(300)
    rows = torch.arange(60)
    whole = PropagationLearner(x, rows, y[rows], 10, 5)
    before = whole.scores(whole.head(0))[250:]
    part = PropagationLearner(x[:250], rows, y[rows], 10, 5)
    head = part.head(0)
    assert isinstance(head, NeighborHead)
    after = head(x[250:])
    assert float((before.argmax(1) == after.argmax(1)).float().mean()) > 0.85
    again = NeighborHead.like(head.state_dict(), 5)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(x), head(x))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_points(n: int) -> None:
    x = normalize(torch.eye(3)[:n] + 0.1)
    learner = PropagationLearner(x, torch.tensor([0]), torch.tensor([1]), 2, 5)
    assert learner.scores(learner.head(0)).argmax(1).tolist() == [1] * n


def test_equal_points_and_points_apart() -> None:
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    graph = propagation_graph(x, 1)
    found = propagate(graph, torch.eye(5)[:, [0]], 0.99)
    assert bool(found.isfinite().all())
    assert found[3:, 0].tolist() == [0, 0], "nothing reaches them"


def test_what_all_have_in_common_does_not_count() -> None:
    """Moved by one vector they are tied as before; directions are unit rows; equal rows keep theirs."""
    x, _ = digits(200)
    moved = normalize(x - x.mean(0)) + 5 * normalize(torch.ones(64), dim=0)  # nearly one direction
    x, moved = centred(x, x.mean(0)), centred(moved, moved.mean(0))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(200))
    nearest = [(each @ each.T).fill_diagonal_(-2).argmax(1) for each in (x, moved)]
    assert float((nearest[0] == nearest[1]).float().mean()) > 0.8
    equal = normalize(torch.ones(4, 3))
    assert torch.equal(centred(equal, equal.mean(0)), equal)


def test_what_nothing_arrives_at_takes_the_nearest_label() -> None:
    """Two islands: one of a label, one without. Its points, and new ones there, have the class of what is nearest."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.9, 0.5]])
    x = normalize(centres.repeat_interleave(8, 0) + 0.01 * torch.randn(24, 3, generator=generator))
    rows = torch.tensor([0, 8])
    learner = PropagationLearner(x, rows, torch.tensor([0, 1]), 2, 3)
    head = learner.head(0)
    assert learner.scores(head).argmax(1).tolist() == [0] * 8 + [1] * 16
    assert head(x).argmax(1).tolist() == [0] * 8 + [1] * 16
    train = torch.tensor([[True, False]])
    assert learner.held_out(train)[:, 0, 1].argmax(1).tolist() == [0, 0], "the only label there is"


def test_what_is_refused() -> None:
    with pytest.raises(UslError, match="k=0"):
        propagation_graph(torch.eye(3), 0)
    with pytest.raises(UslError, match="all zeros in row 1"):
        propagation_graph(torch.tensor([[1.0, 0], [0, 0]]), 1)
