"""DeepCluster v2's k-means and loss against loops, over epochs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGE, IMAGES, Trainer, assert_steps_are, batch_of, with_whole_set
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.keys import permutation
from usl_lightning.data.views import Recipe, Weak
from usl_lightning.data.views.steps import RandomResizedCrop
from usl_lightning.pretrain.deepcluster import DeepCluster, cluster_loss, spherical_kmeans


def unit(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def slow_kmeans(x: Tensor, start: Tensor, iterations: int) -> tuple[list[int], list[Tensor]]:
    centres, labels = list(start), [0] * len(x)
    for _ in range(iterations):
        labels = [max(range(len(centres)), key=lambda k, row=row: float(row @ centres[k])) for row in x]  # type: ignore[misc]
        for k in range(len(centres)):
            own = [row for row, label in zip(x, labels, strict=True) if label == k]
            centres[k] = F.normalize(torch.stack(own).sum(0), dim=0) if own else centres[k]
    return labels, centres


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_is_spherical(seed: int) -> None:
    x = unit(30, 4, seed)
    start = torch.cat([x[:6], -x[:1]])  # the last one may stay empty
    labels, centroids = spherical_kmeans(x, start, 4)
    expected, centres = slow_kmeans(x, start, 4)
    assert labels.tolist() == expected
    torch.testing.assert_close(centroids, torch.stack(centres))


def slow_loss(views: list[Tensor], labels: Tensor, prototypes: list[Tensor]) -> Tensor:
    losses = []
    for own, centres in zip(labels, prototypes, strict=True):
        for view in views:
            for row, label in zip(view, own.tolist(), strict=True):
                p = (centres @ row / 0.1).exp()
                losses.append(-(p[label] / p.sum()).log())
    return torch.stack(losses).mean()


def test_the_loss_is_cross_entropy_of_every_view() -> None:
    views, prototypes = [unit(5, 4, s) for s in range(3)], [unit(6, 4, s) for s in (7, 8)]
    labels = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
    found = cluster_loss(torch.cat(views), labels, torch.stack(prototypes), temperature=0.1)
    torch.testing.assert_close(found, slow_loss(views, labels, prototypes))


def model(**options: Any) -> DeepCluster:
    small = Recipe([RandomResizedCrop(6, (0.3, 0.6))])
    sizes = {"clusters": 9, "hidden_dim": 24, "projection_dim": 6, "heads": 3}
    return DeepCluster(IMAGE, Weak(), Optimization(), small_view=small, backbone="small_w16", **{**sizes, **options})


def test_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps are an epoch; the memory is of embeddings as they were when the image was met."""
    net = model(small_views=2)
    whole = [batch_of(100, IMAGES)]
    order = whole[0].indices.argsort()
    whole[0].images, whole[0].indices = whole[0].images[order], torch.arange(IMAGES)
    monkeypatch.setattr(Trainer, "__init__", with_whole_set(Trainer.__init__, whole))
    memory: list[list[Tensor]] = []
    labels, prototypes = torch.zeros(3, IMAGES, dtype=torch.long), [torch.empty(0)] * 3

    def embedded(images: Tensor) -> Tensor:
        return F.normalize(net.projector(net.encoder(images)), dim=1)

    def slow(batch: Batch, step: int) -> Tensor:
        nonlocal memory
        if step == 0:
            net.eval()
            views = [net.view(whole[0].images, whole[0].key.fold("first", number)) for number in range(2)]
            memory = [list(embedded(view).detach()) for view in views]
            net.train()
        if step % 5 == 0:
            for head in range(3):
                x = torch.stack(memory[head % 2])
                start = x[permutation(IMAGES, 0, "clusters", step // 5, head)[:9]]
                found, prototypes_of = slow_kmeans(x, start, 10)
                labels[head], prototypes[head] = torch.tensor(found), torch.stack(prototypes_of)
        large = torch.cat([net.view(batch.images, batch.key.fold("view", i)) for i in range(2)])
        small = torch.cat([net.small_view(batch.images, batch.key.fold("small view", i)) for i in range(2)])
        views = [z for one in (large, small) for z in embedded(one).split(8)]
        for number in range(2):
            for image, row in zip(batch.indices.tolist(), views[number].detach(), strict=True):
                memory[number][image] = row
        return slow_loss(views, labels[:, batch.indices], prototypes)

    assert_steps_are(net, slow)


def test_more_clusters_than_images_are_refused() -> None:
    net = model(clusters=41)
    net.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(UslError, match=r"model\.clusters: 41 for 40 images; use at most 40"):
        net.setup("fit")
