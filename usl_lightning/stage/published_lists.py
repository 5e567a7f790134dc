"""A published label index names positions in the files that its data set was published as."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from usl_lightning.base.configs import shipped_folder
from usl_lightning.base.errors import UslError
from usl_lightning.base.files import once
from usl_lightning.data.images import catalog
from usl_lightning.data.images.originals import ORIGINALS, first_other

log = logging.getLogger(__name__)


def check_published_list(key: str, path: Path, flat: Mapping[str, Any]) -> None:
    """Refuse a shipped index with another data set than its own, and warn where that set's files are not the originals.

    Args:
        key: of the parameter that names the index.
        path: of the index.
        flat: the configuration as dotted keys.

    Raises:
        UslError: names the index and both sets.
    """
    name = path.name.split("_")[0]
    if path.parent != shipped_folder() / "labels" or name not in ORIGINALS or "data.dataset" not in flat:
        return
    given = catalog.canonical_name(str(flat["data.dataset"]))
    if given != name:
        raise UslError(
            f"{key}: {path.name}: positions in {name}, but the data set is {given}; use it with {name} alone"
        )
    folder = None if flat.get("data.dir") is None else str(flat["data.dir"])
    once(("published list", path.name, folder), lambda: _tell_of_others(path.name, name, folder))


def _tell_of_others(index: str, name: str, folder: str | None) -> None:
    try:
        found = catalog.locate(name, "train", folder)
    except UslError:  # whoever reads the set tells
        return
    other = first_other(name, "train", found[0].paths)
    if other is not None:
        log.warning(
            "%s: positions in %s as it was published, but %s is another file (its MD5 says): they may be other images; "
            "fetch %s again unless yours has the same images in the same order",
            index, name, other, name,
        )  # fmt: skip
