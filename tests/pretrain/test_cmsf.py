"""CMSF's losses against loops, with bank and memories kept as lists."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, IMAGES, assert_steps_are
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.views import Weak
from usl_lightning.models.mean_shift import constrained_loss, ranks_of_allowed
from usl_lightning.pretrain.msf import MSF
from usl_lightning.vectors.kmeans import kmeans

K = 3


def model(**options: Any) -> MSF:
    sizes = {"hidden_dim": 24, "projection_dim": 6, "neighbours": K, "bank_size": 30}
    return MSF(IMAGE, Weak(), Optimization(), backbone="small_w16", **{**sizes, **options})


def mean_of_nearest(v: Tensor, u: Tensor, rows: list[Tensor]) -> Tensor:
    """2 − 2·cos to the K nearest of some rows, or as many as there are."""
    nearest = sorted(rows, key=lambda row: -float(row @ u))[:K]
    return torch.stack([2 - 2 * F.cosine_similarity(v, row, dim=0) for row in nearest]).mean()


class Slow:
    """The loss of a batch, with a bank of (image, embedding) and what is remembered of each image."""

    def __init__(self, msf: MSF, labels: Tensor) -> None:
        self.msf, self.labels = msf, labels
        self.bank: list[tuple[int, Tensor]] = []
        self.seen: dict[int, list[Tensor]] = {}
        self.clusters: dict[int, int] = {}

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Neighbours are looked for among all rows and among related ones."""
        if step and step % 5 == 0 and self.msf.constraint == "clusters":
            met = sorted(self.seen)
            table = torch.stack([self.seen[image][-1] for image in met])
            labels, _ = kmeans(table, min(7, len(met)), seed=0, iterations=20)
            self.clusters |= dict(zip(met, labels.tolist(), strict=True))
        images = batch.indices.tolist()
        v = self.msf.predictor(self.msf._online()(self.msf.view(batch.images, batch.key.fold("view"))))
        weak = self.msf.weak(batch.images, batch.key.fold("weak"))
        u = F.normalize(self.msf.target.module(weak), dim=1).detach()
        self.bank = [*self.bank, *zip(images, u, strict=True)][-len(self.msf.bank.rows) :]
        for image, own in zip(images, u, strict=True):
            self.seen.setdefault(image, []).append(own)
        losses = []
        for image, prediction, target in zip(images, v, u, strict=True):
            free = mean_of_nearest(prediction, target, [row for _, row in self.bank])
            related = self.related(image)
            weight = self.msf.constraint_weight if related else 0.0
            constrained = mean_of_nearest(prediction, target, related) if related else free
            losses.append((1 - weight) * free + weight * constrained)
        return torch.stack(losses).mean()

    def related(self, image: int) -> list[Tensor]:
        """Rows of the bank; none if nothing is known."""
        if self.msf.constraint == "labels":
            label = int(self.labels[image])
            return [row for other, row in self.bank if int(self.labels[other]) == label] if label >= 0 else []
        if self.msf.constraint == "clusters":
            cluster = self.clusters.get(image)
            return [row for other, row in self.bank if cluster is not None and self.clusters.get(other) == cluster]
        if len(self.seen[image]) < 2:
            return []
        old = self.seen[image][-2]
        known = list({other: (other, row) for other, row in self.bank if len(self.seen[other]) > 1}.values())
        return [row for _, row in sorted(known, key=lambda each: -float(self.seen[each[0]][-2] @ old))[:4]]


@pytest.mark.parametrize("constraint", ["previous", "clusters", "labels"])
def test_steps_by_hand(constraint: str, tmp_path: Any) -> None:
    """With labels some images have none, and some classes few rows; else some are in the bank twice."""
    labels = torch.arange(IMAGES) % 7 - 1
    size = 45 if constraint == "previous" else 30
    named = {"labels_from": "labels.json"} if constraint == "labels" else {}
    msf = model(constraint=constraint, related=4, clusters=7, constraint_weight=0.7, bank_size=size, **named)
    if constraint == "labels":
        msf.groups.copy_(labels)
    known: list[bool] = []
    slow = Slow(msf, labels)

    def watched(batch: Batch, step: int) -> Tensor:
        loss = slow(batch, step)
        known.extend(bool(slow.related(image)) for image in batch.indices.tolist())
        return loss

    assert_steps_are(msf, watched)
    assert 0.2 < sum(known) / len(known) < 0.95


def test_an_image_without_rows_has_no_loss_and_fewer_rows_are_averaged() -> None:
    bank = F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1)
    v, allowed = torch.randn(2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    allowed[1, :2] = True
    loss = constrained_loss(v, F.normalize(v, dim=1), bank, allowed, 4)
    cosines = F.cosine_similarity(v[1:], bank[:2])
    torch.testing.assert_close(loss, torch.stack([torch.zeros(()).double(), (2 - 2 * cosines).mean()]))


def test_ranks_are_the_places_in_a_sorted_list() -> None:
    draw = torch.Generator().manual_seed(0)
    bank, targets = (F.normalize(torch.randn(n, 3, generator=draw), dim=1) for n in (9, 4))
    there = torch.arange(9) < 7
    allowed = (torch.rand(4, 9, generator=draw) < 0.4) & there
    allowed[0], allowed[1] = there, False
    ranks = ranks_of_allowed(targets, bank, there, allowed, K)
    for target, some, own in zip(targets, allowed, ranks.tolist(), strict=True):
        order = sorted(range(7), key=lambda row: -float(bank[row] @ target))
        places = [place for place, row in enumerate(order, 1) if some[row]][:K]
        assert own == places + [0] * (K - len(places))
    assert ranks[0].tolist() == [1, 2, 3]


def test_how_far_related_rows_are_is_logged_whenever_lightning_logs() -> None:
    """By the images whose related rows are known alone; of the nearest cluster they are near, and MSF's own in part."""
    msf = model(constraint="clusters", clusters=7)
    logged: dict[int, dict[str, Tensor]] = {}
    assert_steps_are(msf, Slow(msf, torch.zeros(IMAGES)), log=lambda step, values: logged.update({step: values}))
    told = {step for step, values in logged.items() if "related_rank" in values}
    assert told == {9, 19}
    assert all(1 <= float(logged[step]["related_rank"]) <= 30 for step in told)
    assert all(0 < float(logged[step]["related_overlap"]) <= 1 for step in told)


@pytest.mark.parametrize("options", [{"constraint": "labels"}, {"labels_from": "labels.json"}])
def test_labels_come_with_their_constraint(options: dict[str, Any]) -> None:
    with pytest.raises(UslError, match=r"model\.labels_from: expected with model\.constraint labels"):
        model(**options)
