"""Heads on top of an encoder."""

import itertools

from torch import Tensor, nn

from usl_lightning.models.encoder import Encoder


def projection_mlp(
    inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm: bool = True, affine_output: bool = True
) -> nn.Sequential:
    """An MLP with batch norm on its hidden layers and its output (SimCLR, §4.2 and the published code).

    Without norm it is the head of MoCo v2 (Chen et al., 2020b, §3); with 3 layers, 2,048 outputs and
    `affine_output` False, SimSiam's projector (Chen and He, 2021, §3).

    Args:
        inputs, hidden, outputs: dimensions.
        layers: linear layers, at least 1.
        norm: False leaves batch norm out and gives every layer a bias.
        affine_output: the output's batch norm has a learned scale and shift.
    """
    sizes = [inputs] + [hidden] * (layers - 1) + [outputs]
    steps: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        is_output = index == layers - 1
        steps.append(nn.Linear(a, b, bias=not norm))
        if norm:
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


class Classifier(nn.Module):
    """An encoder and a linear layer: images [b, c, h, w] -> logits [b, classes]."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.feature_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return self.head(self.encoder(images))
