"""Heads on top of an encoder."""

import itertools

from torch import Tensor, nn

from usl_lightning.models.encoder import Encoder


def projection_mlp(inputs: int, hidden: int, outputs: int, *, layers: int = 2, norm: bool = True) -> nn.Sequential:
    """An MLP with batch norm on its hidden layers and its output (SimCLR, §4.2 and the published code).

    Args:
        inputs, hidden, outputs: dimensions.
        layers: linear layers, at least 1.
        norm: False leaves batch norm out and gives every layer a bias.
    """
    sizes = [inputs] + [hidden] * (layers - 1) + [outputs]
    steps: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        steps.append(nn.Linear(a, b, bias=not norm))
        if norm:
            steps.append(nn.BatchNorm1d(b))
        if index < layers - 1:
            steps.append(nn.ReLU(inplace=True))
    return nn.Sequential(*steps)


class Classifier(nn.Module):
    """An encoder and a linear layer: images [b, c, h, w] -> logits [b, classes]."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.feature_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [b, classes]."""
        return self.head(self.encoder(images))
