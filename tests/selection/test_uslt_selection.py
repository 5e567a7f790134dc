"""USL-T's selection against a loop over clusters: one of each, exactly the budget, from its training's checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_features import real_features
from torch import Tensor
from training import digits, train

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.modules import ImageData
from usl_lightning.data.views import Weak
from usl_lightning.engine.trainer import Trainer
from usl_lightning.features.neighbor_data import NeighborData
from usl_lightning.models.cluster_heads import ClusterHeads, cluster_confidence
from usl_lightning.pretrain.simclr import SimCLR
from usl_lightning.selection.uslt import USLTTraining
from usl_lightning.selection.uslt_selection import (
    USLT,
    Representative,
    best_followers,
    best_of_clusters,
    clusters_and_scores,
)
from usl_lightning.stage.select import choose
from usl_lightning.vectors.density import density_distance


def heads(clusters: int, inputs: int = 64, seed: int = 0, scale: float = 20.0) -> ClusterHeads:
    made = ClusterHeads(inputs, clusters, 3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in made.layers:
            layer.weight.copy_(scale * torch.randn(clusters, inputs, generator=generator))  # type: ignore[operator, union-attr]
            layer.bias.zero_()  # type: ignore[operator, union-attr]
    return made


def slow_best(clusters: list[int], scores: list[float], budget: int) -> list[int]:
    """The rule cluster by cluster."""
    sizes = {c: clusters.count(c) for c in set(clusters)}
    kept = sorted(sorted(sizes, key=lambda c: (-sizes[c], c))[:budget])
    picks = [max((i for i in range(len(scores)) if clusters[i] == c), key=lambda i: (scores[i], -i)) for c in kept]
    rest = sorted((i for i in range(len(scores)) if i not in picks), key=lambda i: (-scores[i], i))
    return picks + rest[: budget - len(picks)]


def select_uslt(
    x: Tensor, learned: ClusterHeads, budget: int, representative: Representative = "mean_confidence"
) -> Tensor:
    return best_of_clusters(*clusters_and_scores(x, learned, representative=representative, k=20), budget)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=20), st.data())
@settings(max_examples=80)
def test_best_of_clusters_is_the_loops(points: list[tuple[int, int]], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(points)))
    clusters, scores = (torch.tensor(column) for column in zip(*points, strict=True))
    chosen = best_of_clusters(clusters * 3, scores.double(), budget).tolist()
    assert chosen == slow_best(clusters.tolist(), scores.tolist(), budget)
    assert len(set(chosen)) == budget


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=20), st.data())
@settings(max_examples=80)
def test_the_next_best_of_its_cluster_follow_an_image(points: list[tuple[int, int]], data: st.DataObject) -> None:
    images = range(len(points))
    chosen = data.draw(st.lists(st.sampled_from(images), unique=True, min_size=1))
    count = data.draw(st.integers(1, 5))
    ranked = sorted(images, key=lambda i: (-points[i][1], i))
    expected = []
    for image in chosen:
        mates = [i for i in ranked if points[i][0] == points[image][0]]
        leads = next(i for i in mates if i in chosen) == image
        expected.append(tuple([i for i in mates if i not in chosen][:count]) if leads else ())
    clusters, scores = (torch.tensor(column) for column in zip(*points, strict=True))
    assert best_followers(clusters, scores.double(), torch.tensor(chosen), count) == tuple(expected)


@pytest.mark.parametrize("representative", ["confidence", "mean_confidence", "density"])
def test_one_of_each_cluster_of_the_first_head(representative: Representative) -> None:
    x, learned = real_features("digits", 400), heads(12)
    chosen = select_uslt(x, learned, 5, representative=representative)
    logits: Tensor = learned(x)
    clusters, p = logits[:, 0].argmax(1), logits.softmax(2).max(2).values
    density = 1 / density_distance(x, 20)
    score = {"confidence": p[:, 0], "mean_confidence": p.mean(1), "density": density}[representative]
    assert len(clusters.unique()) > 5, "there are clusters to leave out"
    assert chosen.tolist() == slow_best(clusters.tolist(), score.tolist(), 5)


def test_the_three_rules_differ() -> None:
    x, learned = real_features("digits", 400), heads(12, scale=5.0)
    rules: tuple[Representative, ...] = ("confidence", "mean_confidence", "density")
    assert len({tuple(select_uslt(x, learned, 8, representative=rule).tolist()) for rule in rules}) == 3


@given(st.integers(1, 30), st.integers(1, 8), st.sampled_from(["random", "duplicates", "equal"]), st.data())
@settings(max_examples=40)
def test_always_exactly_the_budget(n: int, clusters: int, kind: str, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 4, generator=generator)
    x = {"random": x, "duplicates": x[torch.randint(max(1, n // 3), (n,), generator=generator)], "equal": x[:1]}[kind]
    for representative in ("confidence", "mean_confidence", "density"):
        chosen = select_uslt(x.expand(n, 4), heads(clusters, 4), budget, representative=representative)  # type: ignore[arg-type]
        assert chosen.dtype == torch.int64
        assert len(chosen.unique()) == len(chosen) == budget


def test_empty_clusters_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    x, learned = real_features("digits", 50), heads(10)
    with torch.no_grad():
        learned.layers[0].bias[:4] = -1e6  # type: ignore[index]
    used = len(cluster_confidence(x, learned)[0].unique())
    with caplog.at_level("INFO"):
        chosen = select_uslt(x, learned, 10)
    assert f"clusters: {used} of 10 hold images" in caplog.text
    assert used <= 6
    assert len(chosen.unique()) == 10
    assert "largest" not in caplog.text
    with caplog.at_level("INFO"):
        select_uslt(x, learned, used - 1)
    assert f"USL-T: the {used - 1} largest of {used} clusters are picked from, one image of each" in caplog.text


@pytest.mark.parametrize(("budget", "rule", "line"), [(0, "density", "budget 0"), (5, "best", "representative 'best'")])
def test_mistakes_are_one_line(budget: int, rule: str, line: str) -> None:
    with pytest.raises(UslError, match=line):
        select_uslt(real_features("digits", 40), heads(4), budget, representative=rule)  # type: ignore[arg-type]


# From a checkpoint ---------------------------------------------------------------------------------------


def training(data: ImageData) -> USLTTraining:
    return USLTTraining(data.spec, Weak(), Optimization("adam", 1e-3), 6, backbone="small_w16")


def simclr(data: ImageData) -> SimCLR:
    return SimCLR(data.spec, Weak(), Optimization(), backbone="small_w16", hidden_dim=16, projection_dim=8, knn_k=5)


def test_the_heads_and_the_encoder_come_from_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USL_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "neighbors.npy", np.arange(1437)[:, None])

    def data() -> NeighborData:
        return NeighborData(str(tmp_path / "neighbors.npy"), batch_size=32, dataset="digits", seed=3)

    state = train(training, data, tmp_path, 3)["state_dict"]
    selector = USLT(digits().spec, 9, str(tmp_path / "checkpoints" / "last.ckpt"), followers=3)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    chosen = choose(trainer, selector, digits()).indices
    model = training(data())
    model.load_state_dict(state)
    source = digits().source("train")
    with torch.no_grad():
        features = model.eval().encoder(source.read(torch.arange(len(source))))
    assert chosen.tolist() == select_uslt(features, model.heads, 9).tolist()
    clusters = cluster_confidence(features, model.heads)[0]
    followers = selector.followers(chosen)
    assert max(map(len, followers)) == 3
    for image, following in zip(chosen, followers, strict=True):
        assert set(clusters[list(following)].tolist()) <= {int(clusters[image])}
    (tmp_path / "keep.json").write_text("[1436]")
    keeping = USLT(digits().spec, 9, selector.init_from, keep_from=str(tmp_path / "keep.json"))
    assert choose(trainer, keeping, digits()).indices[0] == 1436
    assert len(list((tmp_path / "cache").glob("features-*.npz"))) == 1, "the second time they are taken from there"


def test_a_checkpoint_without_heads_is_refused(tmp_path: Path) -> None:
    train(simclr, digits, tmp_path, 1)
    selector = USLT(digits().spec, 9, str(tmp_path / "checkpoints" / "last.ckpt"))
    with pytest.raises(UslError, match=r"last\.ckpt holds no cluster heads; expected a checkpoint of USL-T's training"):
        selector.setup("predict")
    with pytest.raises(UslError, match=r"model\.init_from: expected a checkpoint of USL-T's training"):
        USLT(digits().spec, 9).setup("predict")
