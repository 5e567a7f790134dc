"""What each layer of a network is worth: linear probes on its maps (Asano et al., 2020, Table 9 and appendix A.1)."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from usl_lightning.data.images.source import ImageSource
from usl_lightning.data.keys import permutation
from usl_lightning.data.passes import batch_that_fits, pass_over
from usl_lightning.evaluation.features import PENALTY, FeatureReport
from usl_lightning.evaluation.linear_probe import probe_accuracy

MapsOf = Callable[[Tensor], Sequence[Tensor]]
"""Images uint8 [b, c, h, w] -> the maps of each layer, [b, c', h', w']."""

PROBED = 10_000
"""Images of a split that these probes look at, at most: maps of all layers are held at once."""


def pooled(maps: Tensor, most: int) -> Tensor:
    """Maps [b, c, h, w] as at most `most` numbers of an image, [b, c·s²], by adaptive max-pooling to squares of s.

    s is at least 1, and at most the maps' own side.
    """
    side = max(1, int((most / maps.shape[1]) ** 0.5))
    return F.adaptive_max_pool2d(maps, [min(side, own) for own in maps.shape[2:]]).flatten(1)


def add_layer_probes(
    report: FeatureReport,
    maps_of: MapsOf,
    train: ImageSource,
    test: ImageSource,
    *,
    most: int,
    device: torch.device,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Add `probe_layer1_accuracy`, … to a report; nothing for a network without maps, as transformers are.

    Labels are read for this alone.

    Args:
        report: is added to.
        maps_of: a network in evaluation mode, on the device.
        train: the images to fit on, `PROBED` of those with a label at most.
        test: the images to measure on, alike.
        most: numbers that the maps of a layer are pooled to.
        device: where the network runs.
        seed: of which images these are.
        workers: processes that read files, see `pass_over`.
    """
    splits = []
    for source in (train, test):
        order = permutation(len(source), seed, "layers")
        some = order[source.labels[order] >= 0][:PROBED].sort().values
        loader = pass_over(source, some, batch_that_fits(source, device), workers=workers)
        layers = _layers(maps_of, most, (batch.images.to(device) for batch in loader))
        splits.append((layers, source.labels[some].to(device)))
    (layers, labels), (test_layers, test_labels) = splits
    classes = int(torch.maximum(labels.max(), test_labels.max())) + 1
    for number, (x, y) in enumerate(zip(layers, test_layers, strict=True), 1):
        accuracy = probe_accuracy(x, labels, y, test_labels, num_classes=classes, penalty=PENALTY)
        note = f"linear probe on the maps of layer {number} of {len(layers)}, {x.shape[1]} numbers, {len(x)} labels"
        report.add(f"probe_layer{number}_accuracy", accuracy, note)


@torch.no_grad()
def _layers(maps_of: MapsOf, most: int, batches: Iterable[Tensor]) -> list[Tensor]:
    """Of each layer what is pooled of all images, [n, d]."""
    parts = [[pooled(maps, most) for maps in maps_of(images)] for images in batches]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]
