"""Learn features without labels, pick the images worth labelling, train from few labels and the rest.

The names below are imported when they are first asked for, so that `import usl_lightning` itself costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Classifier": "chain.classifier",
    "ImageData": "data.modules",
    "LabelIndex": "labels",
    "LabelledData": "data.modules",
    "SemiSupervisedData": "data.modules",
    "UslError": "base.errors",
    "__version__": "base.version",
    "knn": "vectors.neighbors",
    "load_classifier": "models.heads",
    "load_encoder": "models.encoder",
    "open_source": "data.images.opening",
    "select_usl": "selection.usl",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'usl_lightning' has no attribute '{name}'")
    return getattr(import_module(f"usl_lightning.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
