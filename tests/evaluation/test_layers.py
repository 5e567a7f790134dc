"""Linear probes of a network's layers: on which maps, pooled how, of which images."""

from functools import partial

import pytest
import torch
from torch import nn

from usl_lightning.data.batch import ImageSpec
from usl_lightning.data.images.opening import open_source
from usl_lightning.evaluation import layers
from usl_lightning.evaluation.features import PENALTY, FeatureReport
from usl_lightning.evaluation.layers import add_layer_probes, pooled
from usl_lightning.evaluation.linear_probe import probe_accuracy
from usl_lightning.models.encoder import Encoder
from usl_lightning.models.maps import layer_maps

DIGITS = ImageSpec(1, 8, 8, (0.3,), (0.3,))


def make(backbone: str, image: ImageSpec = DIGITS) -> Encoder:
    torch.manual_seed(0)
    return Encoder(backbone, image).eval()


def test_maps_are_pooled_to_the_largest_squares_that_fit() -> None:
    maps = torch.arange(32.0).view(1, 2, 4, 4)
    assert pooled(maps, 8).tolist() == [[5, 7, 13, 15, 21, 23, 29, 31]]
    assert pooled(maps, 17).tolist() == pooled(maps, 8).tolist(), "3×3 would be 18 numbers"
    assert pooled(maps, 1).tolist() == [[15, 31]]
    assert pooled(maps, 10_000).tolist() == maps.flatten(1).tolist()


def test_layers_are_the_last_blocks_of_each_size_or_the_convolutions() -> None:
    small = layer_maps(make("small"), torch.rand(2, 1, 8, 8))
    assert [tuple(each.shape[1:]) for each in small] == [(32, 8, 8), (64, 4, 4), (128, 2, 2)]
    alexnet = make("alexnet", ImageSpec(3, 64, 64, (0.5,) * 3, (0.5,) * 3))
    images = torch.rand(2, 3, 64, 64)
    own = layer_maps(alexnet, images)
    assert [each.shape[1] for each in own] == [96, 256, 384, 384, 256]
    net: nn.Sequential = alexnet.net.layers  # type: ignore[assignment]
    torch.testing.assert_close(own[0], net[:3](alexnet.normalised(images)))
    torch.testing.assert_close(own[4], net[:17](alexnet.normalised(images)))
    transformer = make("vit_tiny_patch16_224", ImageSpec(3, 224, 224, (0.5,) * 3, (0.5,) * 3))
    assert layer_maps(transformer, torch.rand(1, 3, 224, 224)) == []


def test_probes_are_those_of_the_pooled_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many images as may be held, and of those with a label alone."""
    encoder, train, test = make("small"), open_source("digits", "train"), open_source("digits", "test")
    train.labels[::2] = -1
    report = FeatureReport()
    add_layer_probes(report, partial(layer_maps, encoder), train, test, most=512, device=torch.device("cpu"))
    parts = []
    for source in (train, test):
        with torch.no_grad():
            maps = layer_maps(encoder, source.read(torch.arange(len(source))))[1]
        parts += [nn.functional.adaptive_max_pool2d(maps, 2).flatten(1), source.labels]
    assert report.metrics.keys() == {f"probe_layer{number}_accuracy" for number in (1, 2, 3)}
    expected = probe_accuracy(*parts, num_classes=10, penalty=PENALTY)
    assert report.metrics["probe_layer2_accuracy"] == pytest.approx(expected, abs=0.003)
    assert report.notes["probe_layer2_accuracy"].endswith("layer 2 of 3, 256 numbers, 718 labels")
    monkeypatch.setattr(layers, "PROBED", 300)
    add_layer_probes(report, partial(layer_maps, encoder), train, test, most=512, device=torch.device("cpu"))
    assert report.notes["probe_layer1_accuracy"].endswith("300 labels")
