"""CLD's clusters and loss against loops, beside NPID and MoCo."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, Trainer, assert_steps_are
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.views import Weak
from usl_lightning.models.instances import instance_loss
from usl_lightning.models.local_clusters import group_discrimination, local_clusters
from usl_lightning.pretrain.moco import MoCo, info_nce
from usl_lightning.pretrain.npid import NPID


def unit(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def slow_clusters(x: Tensor, k: int) -> tuple[list[int], Tensor]:
    """The published k-means: five rounds from the first k rows, an empty cluster at 0, with gradient."""
    centres, labels = list(x[:k]), [0] * len(x)
    for _ in range(5):
        labels = [min(range(k), key=lambda c, row=row: float((row - centres[c]).detach().square().sum())) for row in x]  # type: ignore[misc]
        members = [[row for row, label in zip(x, labels, strict=True) if label == c] for c in range(k)]
        centres = [torch.stack(own).mean(0) if own else torch.zeros_like(x[0]) for own in members]
    return labels, torch.stack(centres)


def slow_loss(one: Tensor, other: Tensor, k: int, temperature: float) -> Tensor:
    (labels1, centres1), (labels2, centres2) = slow_clusters(one, k), slow_clusters(other, k)
    losses = []
    for x, labels, centres in ((one, labels2, centres2), (other, labels1, centres1)):
        for row, label in zip(x, labels, strict=True):
            p = (centres @ row / temperature).exp()
            losses.append(-(p[label] / p.sum()).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", range(6))
def test_values_and_gradients_are_those_of_loops(seed: int) -> None:
    views = [unit(12, 3, seed + i).requires_grad_() for i in range(2)]
    labels, centres = local_clusters(views[0], 4)
    expected, means = slow_clusters(views[0], 4)
    assert labels.tolist() == expected
    torch.testing.assert_close(centres, means)
    found = group_discrimination(views[0], views[1], clusters=4, temperature=0.2)
    slow = slow_loss(F.normalize(views[0], dim=1), F.normalize(views[1], dim=1), 4, 0.2)
    torch.testing.assert_close(found, slow)
    for own, other in zip(torch.autograd.grad(found, views), torch.autograd.grad(slow, views), strict=True):
        torch.testing.assert_close(own, other)


def test_steps_on_npid_by_hand() -> None:
    npid = NPID(
        IMAGE, Weak(), Optimization(), backbone="small_w16", projection_dim=6, cld_weight=0.7, cld_clusters=4
    )  # fmt: skip
    bank = npid.bank.clone().double()

    def slow(batch: Batch, step: int) -> Tensor:
        features = [
            npid.encoder(npid.view(batch.images, key)) for key in (batch.key.fold("view"), batch.key.fold("view", 1))
        ]
        v = [F.normalize(npid.projector(each), dim=1) for each in features]
        instance = sum(instance_loss(each, bank.clone(), batch.indices, temperature=0.1) for each in v) / 2
        groups = [F.normalize(npid.groups(each), dim=1) for each in features]  # type: ignore[misc]
        for image, row in zip(batch.indices.tolist(), v[0].detach(), strict=True):
            bank[image] = F.normalize((bank[image] + row) / 2, dim=0)
        return instance + 0.7 * slow_loss(groups[0], groups[1], 4, 0.2)

    assert_steps_are(npid, slow)


@pytest.mark.parametrize("options", [{"cld_weight": 0.8, "cld_clusters": 3}, {"eman": True}, {"projection_layers": 1}])
def test_steps_on_moco_by_hand(options: dict[str, Any]) -> None:
    """Also the one-layer head of MoCo v1, and EMAN: statistics that follow slowly."""
    moco = MoCo(
        IMAGE, Weak(), Optimization(), backbone="small_w16", projection_dim=6, hidden_dim=12, queue_size=24,
        shuffle_groups=None, momentum=0.9, **options,
    )  # fmt: skip
    queue = list(moco.queue.double())
    keys = {name: value.detach().clone().double() for name, value in moco._query_encoder().state_dict().items()}

    def slow(batch: Batch, step: int) -> Tensor:
        nonlocal queue
        online = moco._query_encoder().state_dict()
        for name, value in keys.items():
            buffer = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            if not buffer or (moco.key_encoder.evaluated and not name.endswith("tracked")):
                value.mul_(0.9).add_(0.1 * online[name].double())
        copy = moco.key_encoder.module
        before = {name: value.clone() for name, value in copy.state_dict().items()}
        if moco.key_encoder.evaluated:
            assert not copy.training
        copy.load_state_dict({name: value.to(before[name].dtype) for name, value in keys.items()})
        k = F.normalize(copy(moco.view(batch.images, batch.key.fold("key"))), dim=1).detach()
        copy.load_state_dict(before)
        views = [moco.view(batch.images, batch.key.fold("query"))]
        views += [moco.view(batch.images, batch.key.fold("query", 1))] if moco.groups is not None else []
        features = [moco.encoder(view) for view in views]
        q = [moco.projector(each) for each in features]
        losses = [info_nce(each, k, torch.stack(queue), temperature=0.2) for each in q]
        queue = [*queue, *k][-24:]
        if moco.groups is None:
            return losses[0]
        groups = [F.normalize(moco.groups(each), dim=1) for each in features]
        return sum(losses) / 2 + 0.8 * slow_loss(groups[0], groups[1], 3, 0.2)

    assert_steps_are(moco, slow)


def test_more_clusters_than_the_batch_are_refused() -> None:
    npid = NPID(IMAGE, Weak(), Optimization(), backbone="small_w16", cld_weight=1.0, cld_clusters=9)
    npid.trainer = Trainer(8)  # type: ignore[assignment]
    with pytest.raises(UslError, match=r"model\.cld_clusters: 9 clusters of a batch of 8"):
        npid.setup("fit")
