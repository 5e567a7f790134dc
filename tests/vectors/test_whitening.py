"""Whitened principal components against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from usl_lightning.data.images.opening import open_source
from usl_lightning.vectors.whitening import whitened


@pytest.mark.parametrize("components", [1, 8, 40, 100])
def test_whitening_is_scikits(components: int) -> None:
    """On digits; some of their pixels are black in all images. Axes may point either way."""
    pixels = open_source("digits", "train").read(torch.arange(400)).flatten(1).double() / 16
    found = whitened(pixels, components)
    rank = int((np.linalg.svd((pixels - pixels.mean(0)).numpy(), compute_uv=False) > 1e-2).sum())
    kept = min(components, rank)
    expected = PCA(kept, whiten=True, svd_solver="full").fit_transform(pixels.numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert list(found.shape) == [400, min(components, 64)]
    np.testing.assert_allclose(found.numpy() @ found.numpy().T, expected @ expected.T, atol=1e-8)
    torch.testing.assert_close(whitened(pixels.float(), components), found.float(), atol=1e-3, rtol=0)


def test_equal_features_are_zeros() -> None:
    assert not whitened(torch.ones(5, 3), 2).any()
