"""OBoW's bags and loss against loops; its steps by hand; its maps and words."""

import math
from typing import Any

import by_hand
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from usl_lightning.base.errors import UslError
from usl_lightning.compute.optim import Optimization
from usl_lightning.data.batch import Batch, ImageSpec
from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.models.maps import channels_of_maps, last_maps
from usl_lightning.pretrain.obow import OBoW, bag_loss, bags_of_words, inside, new_words, words_and_distance


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_bags_are_the_papers(n: int, d: int, side: int, count: int, seed: int) -> None:
    """Place by place and word by word."""
    maps, words, temperature = random(n, d, side, side, seed=seed), random(count, d, seed=seed + 1), 0.7
    distances, nearest = words_and_distance(maps, words)
    bags = bags_of_words(distances, torch.tensor(temperature, dtype=torch.float64))
    for i in range(n):
        shares, least = [], []
        for u in range(side * side):
            place = maps[i, :, u // side, u % side].tolist()
            squares = [sum((a - b) ** 2 for a, b in zip(place, word, strict=True)) for word in words.tolist()]
            total = sum(math.exp(-square / temperature) for square in squares)
            shares.append([math.exp(-square / temperature) / total for square in squares])
            least.append(min(squares))
        most = [max(place[k] for place in shares) for k in range(count)]
        assert bags[i].tolist() == pytest.approx([each / sum(most) for each in most], rel=1e-7)
        assert nearest[i].item() == pytest.approx(sum(least) / len(least), rel=1e-7)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_loss_is_the_cross_entropy_less_the_bags_entropy(n: int, views: int, count: int, seed: int) -> None:
    logits, bags = random(views * n, count, seed=seed), random(n, count, seed=seed + 1).softmax(1)
    total = 0.0
    for row, scores in enumerate(logits.tolist()):
        total_score = math.log(sum(math.exp(score) for score in scores))
        for share, score in zip(bags[row % n].tolist(), scores, strict=True):
            total += share * (math.log(share) - (score - total_score))
    assert bag_loss(logits, bags).item() == pytest.approx(total / (views * n), rel=1e-9, abs=1e-12)
    assert bag_loss(bags.log(), bags).item() == pytest.approx(0, abs=1e-12)


def make(**options: Any) -> OBoW:
    options = {"words": 20, "levels": 2, "sharpness": 6.0, "scale": 3.0, "momentum": 0.9, **options}
    torch.manual_seed(0)
    return OBoW(by_hand.IMAGE, Weak(flip=False), Optimization(), backbone="small_w16", **options)


@pytest.mark.parametrize("levels", [1, 2])
def test_steps_are_those_of_a_slow_version_that_keeps_its_own_words(levels: int) -> None:
    """24 steps of a batch of 8 and 20 words: the oldest words go, the temperature follows, the teacher moves."""
    net = make(levels=levels, small_views=1)
    sizes = [32, 64][-levels:]
    words = [[row.double() for row in vocabulary.rows] for vocabulary in net.vocabularies]  # type: ignore[union-attr]
    oldest, distance = 0, [0.5] * levels

    def told(view: Tensor, weights: Tensor, bag: Tensor) -> Tensor:
        logs = (3.0 * net.encoder(view) @ weights.T).log_softmax(1)
        return (bag * (bag.log() - logs)).sum(1).mean()

    def slow(batch: Batch, step: int) -> Tensor:
        nonlocal oldest
        key = batch.key
        large = torch.cat([net.view(batch.images, key.fold("view", number)) for number in range(2)])
        small = net.view(batch.images, key.fold("small view", 0))
        vocabularies = [torch.stack(each) for each in words]
        weights = [
            F.normalize(generator(F.normalize(each, dim=1)), dim=1)
            for generator, each in zip(net.generators, vocabularies, strict=True)
        ]
        teacher = net.teacher.module
        with torch.no_grad():
            x = (net.teacher_view(batch.images, key.fold("teacher")) - teacher.mean) / teacher.std
            x, maps = teacher.net.stem(x), []
            for block in teacher.net.stages:
                x = block(x)
                maps.append(x)
        bags = []
        for level, each in enumerate(maps[-levels:]):
            assert each.shape[1] == sizes[level]
            places = each.flatten(2).transpose(1, 2)
            squares = (places[:, :, None] - vocabularies[level]).square().sum(3)
            distance[level] = 0.99 * distance[level] + 0.01 * squares.min(2).values.mean().item()
            most = (-squares * 6.0 / distance[level]).softmax(2).max(1).values
            bags.append(most / most.sum(1, keepdim=True))
            side = min(3, each.shape[2])
            squares_of = each.unfold(2, side, 1).unfold(3, side, 1).mean((4, 5)).flatten(2)
            place = key.fold("word", level).integers(1, squares_of.shape[2])[:, 0]
            for i in range(8):
                words[level][(oldest + i) % 20] = squares_of[i, :, place[i]]
        oldest += 8
        losses = [
            (told(large[:8], w, bag) + told(large[8:], w, bag)) / 2 + told(small, w, bag)
            for w, bag in zip(weights, bags, strict=True)
        ]
        return torch.stack(losses).mean()

    # `told` looks at each view by itself, `training_step` at those of a size at once.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    by_hand.assert_steps_are(net, slow)
    assert net.vocabularies[0].written == 24 * 8


def test_maps_are_the_last_of_each_size() -> None:
    image = ImageSpec(3, 32, 32, (0.5,) * 3, (0.2,) * 3, ("a", "b"), count=40)
    model = OBoW(image, Weak(), Optimization(), words=4, backbone="resnet18_cifar")
    x = torch.rand(2, 3, 32, 32)
    seen = model.encoder.eval().normalised(x)
    net: Any = model.encoder.net
    coarse = net.layer3(net.layer2(net.layer1(net.act1(net.bn1(net.conv1(seen))))))
    torch.testing.assert_close(last_maps(model.encoder, x, 2), [coarse, net.layer4(coarse)])
    assert channels_of_maps(model.encoder, 3) == [128, 256, 512]
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(("backbone", "size", "sizes"), [("alexnet_small", 64, 0), ("small", 8, 3)])
def test_a_network_without_such_maps_is_refused(backbone: str, size: int, sizes: int) -> None:
    image = ImageSpec(3, size, size, (0.5,) * 3, (0.2,) * 3, ("a", "b"), count=40)
    with pytest.raises(UslError, match=rf"model.levels: 4 of '{backbone}', whose blocks make maps of {sizes} sizes"):
        OBoW(image, Weak(), Optimization(), levels=4, backbone=backbone)


@pytest.mark.parametrize(("side", "kept"), [(1, 1), (2, 2), (4, 4), (5, 3), (7, 5)])
def test_borders_are_cut_where_enough_is_left(side: int, kept: int) -> None:
    maps = torch.arange(side * side * 1.0).view(1, 1, side, side)
    start = (side - kept) // 2
    assert torch.equal(inside(maps), maps[:, :, start : start + kept, start : start + kept])


def test_a_new_word_is_the_mean_of_a_square_at_a_random_place() -> None:
    maps = random(400, 2, 4, 4)
    drawn = new_words(maps, Key.of(0, slots=torch.arange(400)))
    found = []
    for each, word in zip(maps, drawn, strict=True):
        means = [each[:, i : i + 3, j : j + 3].mean((1, 2)) for i in range(2) for j in range(2)]
        (place,) = (number for number, mean in enumerate(means) if torch.allclose(mean, word))
        found.append(place)
    assert all(70 < found.count(place) < 130 for place in range(4))
    small = random(3, 2, 2, 1)
    torch.testing.assert_close(new_words(small, Key.of(0, slots=torch.arange(3))), small.mean((2, 3)))
