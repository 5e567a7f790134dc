"""Features in two dimensions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 3000
"""Points that t-SNE is given, at most: about half a minute on one core."""

FEWEST = 10
"""Fewer points have no neighbourhoods to keep."""

_STEPS = 500  # of gradient descent; what t-SNE shows is settled by then


def plane(features: "NDArray[Any]", *, most: int = MOST) -> tuple["NDArray[Any]", str]:
    """Places in the plane, and how they were found.

    t-SNE (van der Maaten and Hinton, 2008) by scikit-learn, begun at the principal components, so that the map is the
    same every time; for more than `most` points, or fewer than ten, the first two principal components themselves.

    Args:
        features: [m, d], principal components, the widest first.
        most: points that t-SNE is given.

    Returns:
        float32 [m, 2], and the name of the method.
    """
    import numpy as np

    x = np.asarray(features, dtype=np.float32)
    m, d = x.shape
    if not FEWEST <= m <= most or d < 2:
        first = np.zeros((m, 2), np.float32)
        first[:, : min(2, d)] = x[:, :2]
        return first, "PCA: the first two principal components"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (m - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=_STEPS, random_state=0)
    return tsne.fit_transform(x), f"t-SNE, perplexity {perplexity:g}, {_STEPS} steps"
