"""Selectors of the next images look at a network that was trained in steps, by the features it has of its own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import Bench, options, usl
from torch import Tensor

from usl_lightning.data.keys import Key
from usl_lightning.data.views import Weak
from usl_lightning.models.heads import load_classifier
from usl_lightning.selection.cbssal import inconsistency
from usl_lightning.selection.entropy import entropy
from usl_lightning.selection.tod import output_discrepancy


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Small data, and networks of two methods."""
    return Bench(tmp_path_factory.mktemp("bench"))


def images(bench: Bench) -> Tensor:
    return torch.from_numpy(np.load(bench.folder / "data" / "train.npz")["images"])[:, None]


def probabilities(checkpoint: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return load_classifier(checkpoint)(x).softmax(1)


def chosen(bench: Bench, config: str, run: Path, **more: Any) -> list[int]:
    """The ten images that are picked beside the twenty."""
    words = options(data__dataset="arrays", data__dir=str(bench.folder / "data"), model__budget=30, **more)
    usl("select", "--config", config, *words, "--keep", bench.folder / "labels.json", "--run_dir", run)
    indices: list[int] = json.loads((run / "labels.json").read_text())["indices"]
    assert indices[:20] == list(range(20))
    return indices[20:]


def highest(scores: Tensor) -> Tensor:
    return scores[20:].sort(descending=True).values[:10]


@pytest.mark.parametrize("method", ["digits_fixmatch.yaml", "digits_simclrv2.yaml"])
def test_entropy_is_that_of_the_network(bench: Bench, tmp_path: Path, method: str) -> None:
    """A linear head, and one of several layers."""
    checkpoint = bench.checkpoint(method)
    scores = entropy(probabilities(checkpoint, images(bench)))
    picks = chosen(bench, "digits_entropy.yaml", tmp_path / "run", model__classifier_from=str(checkpoint))
    assert torch.allclose(scores[picks], highest(scores), atol=1e-5)


@pytest.mark.parametrize("name", ["badge", "bald", "core_gcn", "dropquery", "mma", "uherding", "vaal"])
def test_the_others_look_at_it_too(bench: Bench, tmp_path: Path, name: str) -> None:
    more = {"vaal": {"model__steps": 2, "model__width": 2}}.get(name, {})
    checkpoint = bench.checkpoint("digits_fixmatch.yaml")
    picks = chosen(bench, f"digits_{name}.yaml", tmp_path / "run", model__classifier_from=str(checkpoint), **more)
    assert len(set(picks)) == 10


def test_tod_compares_two_networks(bench: Bench, tmp_path: Path) -> None:
    now, before = bench.checkpoint("digits_fixmatch.yaml"), bench.checkpoint("digits_flexmatch.yaml")
    x = images(bench)
    scores = output_discrepancy(probabilities(now, x), probabilities(before, x))
    assert float(scores.max()) > 1e-6
    earlier = {"model__classifier_from": str(now), "model__earlier_from": str(before)}
    picks = chosen(bench, "digits_tod.yaml", tmp_path / "run", **earlier)
    assert torch.allclose(scores[picks], highest(scores), atol=1e-6)


def test_views_are_those_of_each_image(bench: Bench, tmp_path: Path) -> None:
    checkpoint = bench.checkpoint("digits_fixmatch.yaml")
    x, key = images(bench), Key.of(0, "pass", slots=torch.arange(160))
    views = [probabilities(checkpoint, Weak()(x, key.fold("view", 0, number))) for number in range(3)]
    scores = inconsistency(iter(views)).float()
    options_ = {"model__classifier_from": str(checkpoint), "model__views": 3}
    picks = chosen(bench, "digits_cbssal.yaml", tmp_path / "run", **options_)
    assert torch.allclose(scores[picks], highest(scores), rtol=1e-3, atol=1e-9)


def test_features_of_another_network_are_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may have as many numbers, and the head would say anything."""
    network, other = bench.checkpoint("digits_fixmatch.yaml"), bench.checkpoint("digits_simclr.yaml")
    blend = bench.checkpoint("digits_blend.yaml")
    pairs = {network: "which has features of its own", blend: "of another network"}
    for number, (classifier, message) in enumerate(pairs.items()):
        features = other if number == 0 else network
        more = {"model__init_from": str(features), "model__classifier_from": str(classifier)}
        with pytest.raises(AssertionError, match="exit code 2"):
            chosen(bench, "digits_margin.yaml", tmp_path / "run", **more)
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("usl: ")]
        assert message in line
