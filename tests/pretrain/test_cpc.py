"""CPC: its contexts look up only, and its loss by loops over patches."""

import pytest
import torch
from by_hand import IMAGE, assert_steps_are, batch_of
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.views import Recipe, Weak
from usl_lightning.data.views.patches import overlapping_patches
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.pretrain.cpc import CPC, RowsAbove, prediction_loss

LARGE = Recipe([RandomResizedCrop(16, (0.5, 1.0))])


def test_patches_overlap() -> None:
    images = torch.arange(2 * 3 * 9 * 11).view(2, 3, 9, 11)
    found = overlapping_patches(images, size=4, stride=2)
    assert list(found.shape) == [2, 3, 4, 3, 4, 4]
    for row in range(3):
        for column in range(4):
            expected = images[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            assert torch.equal(found[:, row, column], expected)
    with pytest.raises(UslError, match=r"model\.patch: 10 pixels of views of 9×11; use fewer, or enlarge them"):
        overlapping_patches(images, size=10, stride=5)


def test_a_context_knows_its_row_and_those_above() -> None:
    """Three blocks look three rows up and three columns to the sides."""
    torch.manual_seed(0)
    context = RowsAbove(4, 8, 3).double()
    for parameter in context.parameters():  # so that no ReLU is shut
        torch.nn.init.uniform_(parameter, 0.1, 0.5)
    features = torch.rand(1, 4, 6, 9, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(context(features)[0, :, 4, 4].sum(), features)
    seen = gradient[0].abs().sum(0) > 0
    assert torch.equal(seen.nonzero().amin(0), torch.tensor([1, 1]))
    assert torch.equal(seen.nonzero().amax(0), torch.tensor([4, 7]))


def test_a_process_finds_its_images_among_all() -> None:
    generator = torch.Generator().manual_seed(0)
    p, z = (torch.randn(6, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    whole = prediction_loss(p, z, torch.arange(6), 2)
    halves = [prediction_loss(p[own], z, torch.arange(6)[own], 2) for own in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_steps_by_hand() -> None:
    """16 pixels in patches of 4, each 2 after the one before: 7×7; predicted are the second and third rows below."""
    net = CPC(
        IMAGE,
        LARGE,
        Optimization(),
        patch=4,
        predicted=2,
        hidden_dim=6,
        blocks=2,
        projection_dim=5,
        backbone="small_w16",
    )

    def slow(batch: Batch, step: int) -> Tensor:
        view = net.view(batch.images, batch.key.fold("view"))
        cut = [
            view[i, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            for i in range(8) for row in range(7) for column in range(7)
        ]  # fmt: skip
        features = net.encoder(torch.stack(cut))
        c = net.context(features.view(8, 7, 7, -1).permute(0, 3, 1, 2))
        targets = net.target(features)
        means = []
        for predictor, below in zip(net.predictors, (2, 3), strict=True):
            losses = []
            for i in range(8):
                for row in range(7 - below):
                    for column in range(7):
                        scores = targets @ (0.1 * predictor(c[i, :, row, column]))
                        losses.append(scores.logsumexp(0) - scores[i * 49 + (row + below) * 7 + column])
            means.append(torch.stack(losses).mean())
        return (means[0] + means[1]) / 2

    assert_steps_are(net, slow, steps=20)


def test_too_few_rows_are_refused() -> None:
    net = CPC(IMAGE, Weak(), Optimization(), patch=6, backbone="small_w16")
    with pytest.raises(UslError, match=r"model\.patch: 6 pixels make 1 rows of patches, with none to predict"):
        net.training_step(batch_of(0), 0)


def test_fewer_rows_than_given_are_told_as_used(caplog: pytest.LogCaptureFixture) -> None:
    net = CPC(IMAGE, LARGE, Optimization(), patch=4, predicted=9, hidden_dim=6, blocks=1, backbone="small_w16")
    net.log_training = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    with caplog.at_level("INFO"):
        for step in range(2):
            net.training_step(batch_of(step), 0)
    assert caplog.text.count("CPC: 5 rows are predicted instead of 9, of as many below") == 1
    assert net.lowered == {"predicted": 5}
