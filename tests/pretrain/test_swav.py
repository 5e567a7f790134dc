"""SwAV's codes and loss against loops, with state; its bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, Trainer, assert_steps_are
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Recipe, Weak
from usl_lightning.data.views.crops import multi_crop
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.pretrain.swav import SwAV, swapped_prediction
from usl_lightning.vectors.sinkhorn import sinkhorn_codes


def slow_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The published loop: Q over its sum, rows of prototypes to 1/K, columns of samples to 1/n, by n."""
    q = [[math.exp(x / epsilon) for x in row] for row in scores.tolist()]
    n, k = len(q), len(q[0])
    for _ in range(iterations):
        for j in range(k):
            total = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= total * k
        for i in range(n):
            total = sum(q[i])
            q[i] = [x / (total * n) for x in q[i]]
    return torch.tensor([[x * n for x in row] for row in q], dtype=scores.dtype)


@given(st.integers(1, 7), st.integers(1, 5), st.sampled_from([0.05, 0.5]), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_codes_are_the_published_loop(n: int, k: int, epsilon: float, iterations: int, seed: int) -> None:
    scores = torch.rand(n + 2, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    expected = slow_codes(scores[:n], epsilon, iterations)
    torch.testing.assert_close(sinkhorn_codes(scores[:n], epsilon=epsilon, iterations=iterations), expected)
    there = torch.arange(n + 2) < n
    found = sinkhorn_codes(scores, epsilon=epsilon, iterations=iterations, there=there)
    torch.testing.assert_close(found[:n], expected)


def test_codes_are_balanced_and_neither_overflow_nor_vanish() -> None:
    scores = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = sinkhorn_codes(scores, epsilon=0.2, iterations=200)
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 5.0, dtype=torch.float64))
    assert sinkhorn_codes(1e4 * scores.float(), epsilon=0.05, iterations=3).isfinite().all()


def test_small_views_have_keys_and_sizes_of_their_own() -> None:
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    key = Key.of(0, slots=torch.arange(3))
    small = Recipe([RandomResizedCrop(6, (0.3, 0.6))])
    large, others = multi_crop(images, key, [Weak(), Weak()], small, 3)
    assert (list(large.shape), list(others.shape)) == ([6, 1, 8, 8], [9, 1, 6, 6])
    assert not torch.equal(others[:3], others[3:6])
    torch.testing.assert_close(large[3:], Weak()(images, key.fold("view", 1)))
    torch.testing.assert_close(others[6:], small(images, key.fold("small view", 2)))
    alone = multi_crop(images[1:], key[1:], [Weak(), Weak()], small, 3)
    torch.testing.assert_close(alone[1][2:4], others[4:6])
    with pytest.raises(UslError, match=r"model\.small_view: its crops have 9×9 pixels, those of model\.view 8×8"):
        multi_crop(images, key, [Weak()], Recipe([RandomResizedCrop(9)]), 1)


def slow_loss(scores: list[Tensor], codes: list[Tensor], temperature: float) -> Tensor:
    total = torch.zeros((), dtype=scores[0].dtype)
    for coded, code in enumerate(codes):
        own = torch.zeros_like(total)
        for other, score in enumerate(scores):
            for i in range(len(score)) if other != coded else ():
                p = (score[i] / temperature).exp()
                own = own - (code[i] * (p / p.sum()).log()).sum() / len(score)
        total = total + own / (len(scores) - 1) / len(codes)
    return total


def test_the_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    codes = [torch.rand(3, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    torch.testing.assert_close(swapped_prediction(scores, codes, temperature=0.3), slow_loss(scores, codes, 0.3))


def model(**options: int) -> SwAV:
    small = Recipe([RandomResizedCrop(6, (0.3, 0.6))])
    sizes = {"prototypes": 10, "hidden_dim": 24, "projection_dim": 6}
    return SwAV(IMAGE, Weak(), Optimization(), small_view=small, backbone="small_w16", **{**sizes, **options})  # type: ignore[arg-type]


def test_steps_by_hand_with_queue_and_frozen_prototypes() -> None:
    """The queue is used once it is full and it is time: from step 5."""
    swav = model(small_views=2, queue_size=20, queue_after=5, frozen_steps=3)
    kept: list[list[Tensor]] = [[], []]
    first = swav.prototypes.weight.detach().clone()

    def slow(batch: Batch, step: int) -> Tensor:
        views = [swav.view(batch.images, batch.key.fold("view", i)) for i in range(2)]
        views += [swav.small_view(batch.images, batch.key.fold("small view", i)) for i in range(2)]
        passes = [torch.cat(views[:2]), torch.cat(views[2:])]
        z = [x for one in passes for x in F.normalize(swav.projector(swav.encoder(one)), dim=1).split(8)]
        prototypes = F.normalize(swav.prototypes.weight.detach(), dim=1)
        torch.testing.assert_close(prototypes, swav.prototypes.weight.detach())
        if step <= 3:
            torch.testing.assert_close(prototypes, F.normalize(first.double(), dim=1))
        codes = []
        for number in range(2):
            own = z[number].detach()
            rows = torch.cat([own, *kept[number]]) if step >= 5 else own
            codes.append(slow_codes(rows @ prototypes.T, 0.05, 3)[:8])
            kept[number] = [torch.cat([*kept[number], own])[-20:]]
        weight = swav.prototypes.weight if step >= 3 else prototypes
        return slow_loss([x @ weight.T for x in z], codes, 0.1)

    assert_steps_are(swav, slow)
    assert not torch.allclose(swav.prototypes.weight.detach(), first.double(), atol=1e-3)


def test_more_prototypes_than_images_are_refused() -> None:
    swav = model(prototypes=41)
    swav.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(UslError, match=r"model\.prototypes: 41 for 40 images; use at most 40"):
        swav.setup("fit")
