"""Whether the files of a set are the published ones, byte for byte: a position in them names the same image then."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

ORIGINALS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cifar10": {
        "train": (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
        )
    },
    "cifar100": {"train": ("16019d7e3df5f24257cddd939b257f8d",)},
}
"""MD5 of each file of a split, in the catalog's order, as torchvision checks them."""


def first_other(name: str, split: str, paths: Sequence[Path]) -> Path | None:
    """The first file of a split that is not as it was published; None: all are, or that is not known.

    Args:
        name: of the set, as in the catalog.
        split: of it.
        paths: its files, in the catalog's order.
    """
    known = ORIGINALS.get(name, {}).get(split, ())
    return next((path for path, md5 in zip(paths, known, strict=False) if _md5(path) != md5), None)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
