"""The nearest neighbours of points, as selectors see them; see `vectors.neighbors`."""

from usl_lightning.vectors.neighbors import knn

__all__ = ["knn"]
