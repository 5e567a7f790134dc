"""Heads on top of an encoder."""

import itertools
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usl_lightning.base.errors import UslError
from usl_lightning.base.ranges import Ranged, Ranges, whole
from usl_lightning.models.encoder import Encoder, as_written, load_encoder, read_checkpoint

VOTES = "votes."
"""What the names of the weights begin with that few labels were learned into."""


PROJECTIONS = ("projector.", "expander.")
"""What the names of the weights of a projection head begin with, in checkpoints of stage 1."""


def projection_mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    layers: int = 2,
    norm: bool = True,
    affine_output: bool = True,
    output_norm: bool = True,
) -> nn.Sequential:
    """An MLP with batch norm on its hidden layers and its output (SimCLR, §4.2 and the published code).

    Without norm it is the head of MoCo v2 (Chen et al., 2020b, §3); with 3 layers, 2,048 outputs and
    `affine_output` False, SimSiam's projector (Chen and He, 2021, §3).

    Args:
        inputs, hidden, outputs: dimensions.
        layers: linear layers, at least 1.
        norm: False leaves batch norm out and gives every layer a bias.
        affine_output: the output's batch norm has a learned scale and shift.
        output_norm: the output has batch norm; False for BYOL's projector and predictor (Grill et al., 2020).
    """
    sizes = [inputs] + [hidden] * (layers - 1) + [outputs]
    steps: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        is_output = index == layers - 1
        normed = norm and (output_norm or not is_output)
        steps.append(nn.Linear(a, b, bias=not normed))
        if normed:
            steps.append(nn.BatchNorm1d(b, affine=affine_output or not is_output))
        if not is_output:
            steps.append(nn.ReLU(inplace=True))
    return nn.Sequential(*steps)


def prediction_mlp(outputs: int, hidden: int, *, norm: bool = True) -> nn.Sequential:
    """SimSiam's predictor (Chen and He, 2021, §3): a bottleneck, and an output without batch norm or ReLU.

    Args:
        outputs: dimension of what it predicts, and of its input.
        hidden: dimension of the bottleneck; a quarter of `outputs` in the paper.
        norm: batch norm on the bottleneck.
    """
    bottleneck = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(
        nn.Linear(outputs, hidden, bias=not norm), *bottleneck, nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def classifier_head(inputs: int, hidden: int, outputs: int, *, layers: int, norm: bool = True) -> nn.Module:
    """The first layers of a projection MLP, each with its ReLU, and a linear layer (SimCLRv2, §2).

    Args:
        inputs, hidden, outputs: dimensions.
        layers: of the projection MLP, 0 or more; 0 is the linear layer alone.
        norm: batch norm in them.
    """
    if layers == 0:
        return nn.Linear(inputs, outputs)
    kept = projection_mlp(inputs, hidden, hidden, layers=layers, norm=norm)
    return nn.Sequential(*kept, nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


class Classifier(Ranged, nn.Module):
    """An encoder and a head, at first a linear layer: images [b, c, h, w] -> logits [b, classes].

    That layer begins with Glorot's normal weights, of variance 2 / (inputs + classes), and biases of 0, as in the
    published code of FixMatch and MixMatch.
    """

    ranges: ClassVar[Ranges] = {"num_classes": whole(1)}
    revision: int = 2

    head: nn.Module

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        linear = nn.Linear(encoder.feature_dim, num_classes)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = linear

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return self.head(self.encoder(images))


class Bottleneck(nn.Module):
    """Features [b, d] -> the same with what two layers make of them, at first nothing (Houlsby et al., ICML 2019).

    Args:
        inputs: d.
        width: r, of the layer between.
        alpha: α; what the layers make is scaled by α / r.
    """

    def __init__(self, inputs: int, width: int, alpha: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, width), nn.Linear(width, inputs)
        self.register_buffer("scale", torch.tensor(alpha / width))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [b, d]."""
        made: Tensor = self.up(F.relu(self.down(features)))
        return features + self.get_buffer("scale") * made


class UnitLength(nn.Module):
    """Features [b, d] -> the same at length 1; zeros stay zeros."""

    def forward(self, features: Tensor) -> Tensor:
        """Unit rows [b, d]."""
        return F.normalize(features, dim=1)


def load_classifier(path: str | Path) -> Classifier:
    """The classifier of a stage-3 checkpoint, in evaluation mode; its encoder knows the class names.

    Of those that are trained in steps it is the moving average.

    Raises:
        UslError: the file is missing, damaged, holds no classifier, or one that is no network.
    """
    stored = read_checkpoint(path).get("state_dict", {})
    if any(name.startswith(VOTES) for name in stored):
        return _linear_classifier(path, stored)
    prefix = "ema.module.head."
    state = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    matrices = [value for value in state.values() if value.dim() == 2]
    if not matrices:
        raise UslError(f"{path}: holds no classifier; expected a checkpoint of a stage that trains with labels")
    classifier = Classifier(load_encoder(path, "ema"), len(matrices[-1]))
    with as_written(path):
        classifier.head = _head_like(state, matrices)
        classifier.head.load_state_dict(state)
    return classifier.eval()


def _head_like(state: dict[str, Tensor], matrices: list[Tensor]) -> nn.Module:
    """A head of the sizes of a state dict, which is yet to be loaded."""
    outputs, inputs = len(matrices[-1]), matrices[0].shape[1]
    if "0.down.weight" in state:
        return nn.Sequential(Bottleneck(inputs, len(matrices[0]), 1.0), nn.Linear(inputs, outputs))
    norm = any(name.endswith("running_mean") for name in state)
    return classifier_head(inputs, len(matrices[0]), outputs, layers=len(matrices) - 1, norm=norm)


def with_projection(encoder: Encoder, path: str | Path) -> Encoder:
    """The encoder of a stage-1 checkpoint with its projection head behind it: its features are what the loss compared.

    Args:
        encoder: of this checkpoint; it is changed, and is no network that could be stored.
        path: of the checkpoint.

    Raises:
        UslError: the checkpoint has no such head, or not for this encoder.
    """
    state = {name: value for name, value in read_checkpoint(path)["state_dict"].items() if name.startswith(PROJECTIONS)}
    layers: dict[int, dict[str, Tensor]] = {}
    with as_written(path):
        for name, value in state.items():
            *place, weight = name.split(".")[1:]
            layers.setdefault(int(place[0]) if place else 0, {})[weight] = value
    if not layers:
        raise UslError(f"model.head: {path} holds no projection; its method has none, use encoder")
    with as_written(path):
        projection = nn.Sequential(*(_layer(layers.get(place)) for place in range(max(layers) + 1)))
        inputs, outputs = (layers[place]["weight"].shape for place in (min(layers), _last_matrix(layers)))
        if inputs[1] != encoder.feature_dim:
            raise ValueError(f"its head takes {inputs[1]} features, its encoder gives {encoder.feature_dim}")
    encoder.net = nn.Sequential(encoder.net, projection).eval()
    encoder.feature_dim = outputs[0]
    return encoder


def _last_matrix(layers: dict[int, dict[str, Tensor]]) -> int:
    return max(place for place, state in layers.items() if "weight" in state and state["weight"].dim() == 2)


def _layer(state: dict[str, Tensor] | None) -> nn.Module:
    """The layer that has these weights; one without any is a ReLU."""
    if state is None:
        return nn.ReLU()
    layer: nn.Module
    if "running_mean" in state:
        layer = nn.BatchNorm1d(len(state["running_mean"]), affine="weight" in state)
    else:
        outputs, inputs = state["weight"].shape
        layer = nn.Linear(inputs, outputs, bias="bias" in state)
    layer.load_state_dict(state)
    return layer


def _linear_classifier(path: str | Path, stored: dict[str, Tensor]) -> Classifier:
    """That of a `Probe`: a linear layer on unit features, its temperature taken into it."""
    names = {f"{VOTES}heads.0.weight", f"{VOTES}heads.0.bias", f"{VOTES}temperatures", f"{VOTES}temperature"}
    if {name for name in stored if name.startswith(VOTES)} - {f"{VOTES}weights"} != names:
        raise UslError(f"{path}: looks images up among those it was learned from, which is no network; a Probe is one")
    with as_written(path):
        scale = stored[f"{VOTES}temperatures"][0]
        weight, bias = (stored[f"{VOTES}heads.0.{name}"] / scale for name in ("weight", "bias"))
        classifier = Classifier(load_encoder(path), len(weight))
        linear = nn.Linear(weight.shape[1], len(weight))
        linear.load_state_dict({"weight": weight, "bias": bias})
    classifier.head = nn.Sequential(UnitLength(), linear)
    return classifier.eval()
