"""How good prior pseudo-labels are, told by labels that nothing was made of."""

import torch
from torch import Tensor

from usl_lightning.compute.device import chunks
from usl_lightning.evaluation.classification import BINS, calibration_error, confidence_bins
from usl_lightning.vectors.priors import Prior


def prior_figures(prior: Prior, rows: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of the prior of the images without a label; empty if there are none.

    `prior_coverage`: the share of them that it says anything of. `prior_confidence`: the mean of the largest shares.
    Where the data set has labels, `prior_accuracy`: how often the largest share is that of the truth, an image without
    a prior being wrong; and `prior_calibration_error`: ECE of the largest share (Guo et al., 2017, 15 bins).

    Args:
        prior: of n images.
        rows: int64 [m], those with a label.
        labels: int64 [n], the data set's, for these figures alone; -1 where unknown.
    """
    device = prior.clusters.device
    rest = torch.ones(len(prior.clusters), dtype=torch.bool, device=device)
    rest[rows.to(device)] = False
    images, labels = torch.nonzero(rest)[:, 0], labels.to(device)
    if not len(images):
        return {}
    runs, classes = prior.clusters.shape[1], prior.tables.shape[2]
    parts = [prior.rows(images[part]).max(1) for part in chunks(len(images), 4 * runs * classes, device)]
    confidence = torch.cat([part.values for part in parts]).double()
    winners, truth = torch.cat([part.indices for part in parts]), labels[images]
    figures = {
        "prior_coverage": float((confidence > 0).double().mean()),
        "prior_confidence": float(confidence.mean()),
    }
    known = truth >= 0
    if bool(known.any()):
        right = ((winners == truth) & (confidence > 0))[known].double()
        values = torch.stack([torch.ones_like(right), right, confidence[known]], 1)
        bins = torch.zeros(BINS, 3, dtype=torch.double, device=device)
        bins.index_add_(0, confidence_bins(confidence[known]), values)
        figures |= {"prior_accuracy": float(right.mean()), "prior_calibration_error": calibration_error(bins)}
    return figures
