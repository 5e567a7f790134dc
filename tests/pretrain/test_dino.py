"""DINO's loss against loops, with its centre and its teacher."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, assert_steps_are
from torch import Tensor

from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.views import Recipe, Weak
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.pretrain.dino import DINO, DINOHead, self_distillation
from usl_lightning.vectors.sinkhorn import sinkhorn_codes


def slow_loss(students: list[Tensor], targets: list[Tensor], temperature: float) -> Tensor:
    losses = []
    for seen, target in enumerate(targets):
        for view, student in enumerate(students):
            if view != seen:
                p = [(row / temperature).exp() / (row / temperature).exp().sum() for row in student]
                losses.append(-sum((t * x.log()).sum() for t, x in zip(target, p, strict=True)) / len(p))
    return sum(losses) / len(losses)  # type: ignore[return-value]


def test_the_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(1)
    students = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    targets = [torch.rand(3, 5, generator=generator, dtype=torch.float64).softmax(1) for _ in range(2)]
    torch.testing.assert_close(self_distillation(students, targets, temperature=0.3), slow_loss(students, targets, 0.3))


def test_the_last_layer_is_weight_normed() -> None:
    head = DINOHead(7, 12, 5, 9, norm=False).double()
    features = torch.randn(4, 7, dtype=torch.float64)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 9, bias=False).double())
    normed.parametrizations.weight.original0.data.fill_(1)
    normed.parametrizations.weight.original1.data.copy_(head.last.weight.data)
    expected = normed(F.normalize(head.mlp(features), dim=1))
    torch.testing.assert_close(head(features), expected)
    head(features, 0.0).sum().backward()
    assert float(head.last.weight.grad.abs().max()) == 0
    assert float(head.mlp[0].weight.grad.abs().max()) > 0


def model(**options: Any) -> DINO:
    small = Recipe([RandomResizedCrop(6, (0.3, 0.6))])
    sizes = {"outputs": 10, "hidden_dim": 24, "bottleneck_dim": 6}
    return DINO(IMAGE, Weak(), Optimization(), small_view=small, backbone="small_w16", **{**sizes, **options})


@pytest.mark.parametrize("centring", ["mean", "sinkhorn"])
def test_steps_by_hand(centring: str) -> None:
    dino = model(
        small_views=2, centring=centring, warm_up_temperature=0.02, warm_up_steps=10, frozen_steps=3, momentum=0.9,
        target_temperature=0.06,
    )  # fmt: skip
    centre = torch.zeros(10, dtype=torch.float64)
    teacher = [parameter.detach().clone().double() for parameter in dino._student().parameters()]

    def slow(batch: Batch, step: int) -> Tensor:
        nonlocal teacher, centre
        for own, expected in zip(dino.teacher.module.parameters(), teacher, strict=True):
            torch.testing.assert_close(own.detach(), expected)
        large = torch.cat([dino.view(batch.images, batch.key.fold("view", i)) for i in range(2)])
        small = torch.cat([dino.small_view(batch.images, batch.key.fold("small view", i)) for i in range(2)])
        students = [x for one in (large, small) for x in dino.head(dino.encoder(one), float(step >= 3)).split(8)]
        outputs = dino.teacher.module(large).detach()
        temperature = 0.02 + 0.04 * min(1, step / 10)
        targets = [((x - centre) / temperature).softmax(1) for x in outputs.split(8)]
        if centring == "sinkhorn":
            targets = [sinkhorn_codes(x, epsilon=temperature, iterations=3) for x in outputs.split(8)]
        centre = 0.9 * centre + 0.1 * outputs.mean(0)
        return slow_loss(students, targets, 0.1)

    update = dino.optimizer_step

    def optimizer_step(*arguments: Any) -> None:
        nonlocal teacher
        update(*arguments)
        decay = 1 - 0.1 * (math.cos(math.pi * dino.global_step / 24) + 1) / 2
        pairs = zip(teacher, dino._student().parameters(), strict=True)
        teacher = [decay * old + (1 - decay) * new.detach() for old, new in pairs]

    dino.optimizer_step = optimizer_step  # type: ignore[method-assign, assignment]
    assert_steps_are(dino, slow)
    torch.testing.assert_close(dino.centre, centre)
