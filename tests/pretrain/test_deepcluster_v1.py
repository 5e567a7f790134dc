"""The first DeepCluster's weights and steps against loops, over epochs."""

from typing import Any

import numpy as np
import pytest
import torch
from by_hand import IMAGE, IMAGES, Trainer, assert_steps_are, batch_of, with_whole_set
from sklearn.decomposition import PCA
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch
from usl_lightning.data.keys import derive_seed
from usl_lightning.data.views import Weak
from usl_lightning.pretrain.deepcluster_v1 import DeepClusterV1, cluster_weights, weighted_loss
from usl_lightning.vectors.kmeans import kmeans


def test_clusters_count_alike() -> None:
    """As if every image were drawn by first drawing one of the clusters that have images."""
    labels = torch.tensor([0, 0, 0, 2, 2, 4])
    weights = cluster_weights(labels, 6)
    assert weights.tolist() == pytest.approx([6 / 9, 0, 6 / 6, 0, 6 / 3, 0])
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = [-(row[label].exp() / row.exp().sum()).log().item() for row, label in zip(logits, labels, strict=True)]
    of_clusters = [sum(each[:3]) / 3, sum(each[3:5]) / 2, each[5]]
    assert weighted_loss(logits, labels, weights).item() == pytest.approx(sum(of_clusters) / 3)


def model(**options: Any) -> DeepClusterV1:
    sizes = {"clusters": 6, "components": 5, "iterations": 4}
    return DeepClusterV1(IMAGE, Weak(), Optimization(), backbone="small_w16", **{**sizes, **options})


def whitened_by_scikit(x: Tensor, components: int) -> Tensor:
    made = PCA(components, whiten=True, svd_solver="full").fit_transform(x.numpy())
    return torch.from_numpy(made / np.linalg.norm(made, axis=1, keepdims=True))


def test_steps_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps are an epoch: each begins with new clusters and a new classifier."""
    net = model()
    whole = [batch_of(100, IMAGES)]
    whole[0].images, whole[0].indices = whole[0].images[whole[0].indices.argsort()], torch.arange(IMAGES)
    monkeypatch.setattr(Trainer, "__init__", with_whole_set(Trainer.__init__, whole))
    labels: list[int] = []
    classifiers = []

    def slow(batch: Batch, step: int) -> Tensor:
        if step % 5 == 0:
            net.eval()
            points = whitened_by_scikit(net.encoder(whole[0].images).detach(), 5)
            net.train()
            seed = derive_seed(0, "clusters", step // 5)
            labels[:] = kmeans(points, 6, seed=seed, iterations=4)[0].tolist()
            drawn = torch.randn(6, net.encoder.feature_dim, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                net.head.weight.copy_(0.01 * drawn)
                net.head.bias.zero_()
            classifiers.append(net.head.weight.clone())
        logits = net.head(net.encoder(net.view(batch.images, batch.key.fold("view"))))
        losses = []
        for row, image in zip(logits, batch.indices.tolist(), strict=True):
            own = labels[image]
            losses.append((row.logsumexp(0) - row[own]) * IMAGES / (len(set(labels)) * labels.count(own)))
        return torch.stack(losses).mean()

    assert_steps_are(net, slow, tolerance=1e-4)  # the weights of the clusters have 32 bits
    assert len({round(float(weights.detach().norm()), 6) for weights in classifiers}) == 5


def test_a_new_classifier_has_no_momentum() -> None:
    net = model()
    net.trainer = trainer = Trainer()  # type: ignore[assignment]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    trainer.optimizers = [optimizer]
    with torch.no_grad():
        net._begin_classifier(3)
    net.head(net.encoder(batch_of(0).images)).square().sum().backward()
    optimizer.step()
    before = net.head.weight.grad.clone()  # type: ignore[union-attr]
    other = next(net.encoder.parameters())
    assert torch.equal(optimizer.state[net.head.weight]["momentum_buffer"], before)
    with torch.no_grad():
        net._begin_classifier(4)
    assert not optimizer.state[net.head.weight]["momentum_buffer"].any()
    assert optimizer.state[other]["momentum_buffer"].any()
    assert net.head.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not net.head.bias.any()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"clusters": 41}, r"model\.clusters: 41 for 40 images; use at most 40"),
        ({"components": 39}, r"model\.components: 39 for 40 images, which would all be equally far"),
    ],
)
def test_more_than_the_images_give_is_refused(options: dict[str, int], line: str) -> None:
    net = model(**options)
    net.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(UslError, match=line):
        net.setup("fit")


def test_fewer_components_than_given_are_told_as_used(caplog: pytest.LogCaptureFixture) -> None:
    net = model(components=37)
    net.encoder.feature_dim = 36
    net.trainer = Trainer()  # type: ignore[assignment]
    with caplog.at_level("INFO"):
        net.setup("fit")
    assert "DeepCluster: 36 components instead of 37, of as many features" in caplog.text
    assert net.lowered == {"components": 36}
